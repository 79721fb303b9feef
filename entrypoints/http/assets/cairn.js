"use strict";
// Every page works without this.

// A form that is sent twice is answered twice, and the first answer, which may be the way back, is lost.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
});
// Whoever comes back to a page by the browser's button may send it again.
window.addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.sent;
});

// Buttons that copy what stands before them. Without this there are none, and the text can be selected.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    const status = document.getElementById("copy-status");
    const label = button.firstChild;
    status.textContent = "";
    try {
      await navigator.clipboard.writeText(text.textContent);
      label.data = "Copied";
      status.textContent = "Copied.";
    } catch {
      // Browsers let only https and this machine's own pages write to the clipboard.
      getSelection().selectAllChildren(text);
      label.data = "Selected";
      status.textContent = "Selected: press Control or Command and C to copy.";
    }
    setTimeout(() => { label.data = "Copy"; }, 4000);
  });
}
