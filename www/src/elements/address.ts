// A field for an address, and those opened lately: for the first page, and where a file is asked for.

import { css, html, LitElement, type TemplateResult } from "lit";
import { forgetUrls, recentUrls } from "../model/recent.js";
import { shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import { nameOf, when } from "./parts.js";

/** Fires `address` with a URL. */
export class CowAddress extends LitElement {
  static override properties = { value: {}, recent: { type: Boolean }, wrong: { state: true } };
  /** What the field holds at first. */
  declare value: string;
  /** Whether to list the addresses opened lately. */
  declare recent: boolean;
  declare private wrong: string | null;

  constructor() {
    super();
    this.value = "";
    this.recent = false;
    this.wrong = null;
  }

  static override styles = [
    shared,
    css`
      form {
        display: flex;
        gap: 8px;
      }
      input {
        flex: 1;
        width: 100%;
      }
      .wrong {
        color: var(--bad);
        font-size: 0.87rem;
        margin-top: 6px;
      }
      .recent {
        display: flex;
        justify-content: space-between;
        align-items: baseline;
        gap: 12px;
        margin-top: 16px;
      }
      ul {
        list-style: none;
      }
      li {
        display: flex;
      }
      li button {
        max-width: 100%;
        display: flex;
        min-width: 0;
        margin-left: -8px;
        text-align: left;
      }
    `,
  ];

  protected override render(): TemplateResult {
    const urls = this.recent ? recentUrls() : [];
    return html`
      <form @submit=${this.#onSubmit} novalidate>
        <input
          id="address"
          type="text"
          inputmode="url"
          autocomplete="off"
          spellcheck="false"
          aria-label="Address of an image"
          aria-describedby="wrong"
          placeholder="https://example.org/disk.qcow2"
          .value=${this.value}
        />
        <button type="submit">Open</button>
      </form>
      <p id="wrong" class="wrong" role="status" ?hidden=${this.wrong === null}>${this.wrong}</p>
      ${when(
        urls.length > 0,
        () => html`
          <div class="recent">
            <h2>Opened lately</h2>
            <button class="quiet" @click=${this.#forget}>Forget them</button>
          </div>
          <ul>
            ${urls.map(
              (url) =>
                html`<li><button class="quiet" title=${shown(url)} @click=${() => this.#give(url)}>${nameOf(url)}</button></li>`,
            )}
          </ul>
        `,
      )}
    `;
  }

  #onSubmit = (event: SubmitEvent): void => {
    event.preventDefault();
    const text = this.renderRoot.querySelector("input")?.value.trim() ?? "";
    if (text === "") this.wrong = "Write or paste the address of an image.";
    else this.#give(/^[a-z][a-z0-9+.-]*:/i.test(text) ? text : `https://${text}`);
  };

  #forget = (): void => {
    forgetUrls();
    this.requestUpdate();
  };

  #give(text: string): void {
    let url: URL;
    try {
      url = new URL(text);
    } catch {
      this.wrong = "That is not an address.";
      return;
    }
    if (url.protocol !== "https:" && url.protocol !== "http:") {
      this.wrong = `Addresses that begin with ${shown(url.protocol)} cannot be opened, only https:// and http://.`;
      return;
    }
    this.wrong = null;
    this.dispatchEvent(new CustomEvent("address", { detail: url }));
  }
}

customElements.define("cow-address", CowAddress);
