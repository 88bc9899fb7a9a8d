// Creates elements. Text is always inserted as text, never parsed as HTML.

export const byId = (id) => document.getElementById(id);

/** Return a new element with properties (or attributes, if there is no such property) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Return a bar filled to a share, 0 to 1. It is hidden from screen readers, so show the value as text too. */
export function bar(share, className = "") {
  const fill = make("span", { className: `fill ${className}` });
  fill.style.setProperty("--share", Math.min(1, Math.max(0, share)).toFixed(4));
  return make("span", { className: "track", "aria-hidden": "true" }, fill);
}
