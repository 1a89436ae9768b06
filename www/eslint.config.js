// Correctness by types, and one rule of the project: what comes from an image reaches the page as text, never as markup.

import tseslint from "typescript-eslint";

const MARKUP = ["innerHTML", "outerHTML", "insertAdjacentHTML", "srcdoc", "setHTMLUnsafe"];
const DIRECTIVES = ["unsafeHTML", "unsafeSVG", "unsafeMathML", "unsafeStatic", "unsafeCSS", "literal"];

export default tseslint.config(
  { ignores: ["dist", "node_modules", ".unit"] },
  {
    files: ["src/**/*.ts"],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "@typescript-eslint/unbound-method": "off",
      "@typescript-eslint/prefer-promise-reject-errors": "off",
      "no-restricted-properties": [
        "error",
        ...MARKUP.map((property) => ({ property, message: "Names from an image are text, not markup." })),
        { object: "document", property: "write", message: "Names from an image are text, not markup." },
      ],
      "no-restricted-syntax": [
        "error",
        ...MARKUP.map((name) => ({
          selector: `TaggedTemplateExpression TemplateElement[value.raw=/\\.${name}=/]`,
          message: "Names from an image are text, not markup.",
        })),
        {
          selector: `ImportSpecifier[imported.name=/^(${DIRECTIVES.join("|")})$/]`,
          message: "Names from an image are text, not markup.",
        },
      ],
      "no-restricted-globals": ["error", "eval", "XMLHttpRequest", "WebSocket", "EventSource", "localStorage"],
    },
  },
);
