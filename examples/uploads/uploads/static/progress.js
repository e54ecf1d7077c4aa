// Shows how far an upload is, and loads its page again when there is more to see on it.
"use strict";

const box = document.getElementById("status");
const text = document.getElementById("text");
const progress = document.getElementById("progress");

function show(status) {
  const summarized = status.step === "mail" && box.dataset.step !== "mail";
  if (status.state !== "working" || summarized) {
    location.reload();
    return;
  }
  if (text.textContent !== status.text) text.textContent = status.text;
  if (status.total) {
    progress.max = status.total;
    progress.value = status.current;
  } else {
    progress.removeAttribute("value");
  }
}

async function poll() {
  try {
    const response = await fetch(box.dataset.url);
    if (response.ok) show(await response.json());
  } catch (error) {
    // The site may be restarting: ask again.
  }
  setTimeout(poll, 300);
}

poll();
