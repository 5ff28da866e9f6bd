// Renews the list of mails every two seconds while the page is looked at. Without this script the list page reloads
// itself. Focus stays on the mail it was on.
"use strict";

const list = document.getElementById("letters");
const open = list.querySelector("[aria-current]");

async function renew() {
  if (document.hidden) return;
  const answer = await fetch("/mailbox", { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById("letters");
  if (!fresh) return;
  if (open) page.getElementById(open.id)?.setAttribute("aria-current", "true");
  if (fresh.innerHTML === list.innerHTML) return;
  const focused = document.activeElement?.id;
  list.replaceChildren(...fresh.childNodes);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

setInterval(() => renew().catch(() => {}), 2000);
