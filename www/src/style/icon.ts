// The page's icon, made of its own text. As a file of the server's it would be asked for again at every change of the
// address, and the page, once loaded, asks for nothing.

import icon from "./icon.svg?raw";

/** The icon as an address that any element can use. */
export const iconUrl = URL.createObjectURL(new Blob([icon], { type: "image/svg+xml" }));

/** Makes it the page's icon. */
export function showIcon(): void {
  const link = document.createElement("link");
  link.rel = "icon";
  link.type = "image/svg+xml";
  link.href = iconUrl;
  document.head.append(link);
}
