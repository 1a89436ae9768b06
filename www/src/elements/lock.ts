// The disk is encrypted: asks for the passphrase, and says when it was not the one.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import { EngineError } from "../engine/client.js";
import { shown } from "../model/text.js";
import { shared } from "../style/shared.js";

/** Opens the image with a passphrase; rejects if it is wrong. */
type Unlock = (passphrase: string) => Promise<void>;

export class CowLock extends LitElement {
  static override properties = { unlock: {}, busy: { state: true }, wrong: { state: true } };
  declare unlock: Unlock;
  declare private busy: boolean;
  /** Why it could not be unlocked. */
  declare private wrong: string | null;

  constructor() {
    super();
    this.busy = false;
    this.wrong = null;
  }

  static override styles = [
    shared,
    css`
      :host {
        background: var(--fair-soft);
        border-radius: var(--radius);
        padding: 12px 16px;
        margin-bottom: 20px;
      }
      form {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: 8px 14px;
      }
      p {
        flex: 1 1 320px;
      }
      .fields {
        display: flex;
        gap: 8px;
        flex: 0 1 380px;
        min-width: 0;
      }
      input {
        flex: 1;
        width: 0;
      }
      .wrong {
        color: var(--bad);
        margin-top: 6px;
      }
    `,
  ];

  protected override render(): TemplateResult {
    return html`
      <form @submit=${this.#onSubmit}>
        <p><strong>This disk is encrypted.</strong> Its structure can be seen; its contents need the passphrase, which stays here.</p>
        <div class="fields">
          <input
            type="password"
            name="passphrase"
            aria-label="Passphrase"
            autocomplete="off"
            aria-invalid=${this.wrong === null ? "false" : "true"}
            ?disabled=${this.busy}
          />
          <button class="primary" ?disabled=${this.busy}>${this.busy ? "Unlocking\u2026" : "Unlock"}</button>
        </div>
      </form>
      ${this.wrong === null ? nothing : html`<p class="wrong break" role="alert">${shown(this.wrong)}</p>`}
    `;
  }

  #onSubmit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const input = this.renderRoot.querySelector("input");
    if (!input || this.busy) return;
    this.busy = true;
    this.wrong = null;
    try {
      await this.unlock(input.value);
    } catch (error) {
      const isWrong = error instanceof EngineError && error.code === "wrong-key";
      this.wrong = isWrong ? "That is not its passphrase." : error instanceof Error ? error.message : String(error);
    }
    this.busy = false;
    await this.updateComplete;
    input.select();
  };
}

customElements.define("cow-lock", CowLock);
