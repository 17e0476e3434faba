"use strict";

// The page of `jvlm serve`: images and questions go to /v1/chat/completions of the server that
// served it, and nowhere else.

const byId = (id) => document.getElementById(id);
const state = { messages: [], images: [], abort: null, model: "" };

async function connect() {
  const status = byId("status");
  try {
    const response = await fetch("/health");
    const health = await response.json();
    if (health.status === "ok") {
      state.model = health.model;
      status.textContent = `${health.model}, ${health.active} active, ${health.queued} waiting`;
    } else if (health.status === "loading") {
      const part = health.total ? ` ${Math.round((100 * health.done) / health.total)} %` : "";
      status.textContent = `loading the model${part}`;
    } else {
      status.textContent = health.error || health.status;
    }
  } catch {
    status.textContent = "the server does not answer";
  }
}

function headers() {
  const key = byId("key").value;
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

function readAsUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function addFiles(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    state.images.push({ name: file.name || "pasted image", url: await readAsUrl(file) });
  }
  showPreviews();
}

function showPreviews() {
  const list = byId("previews");
  list.replaceChildren();
  state.images.forEach((image, index) => {
    const item = document.createElement("li");
    const frame = document.createElement("span");
    frame.className = "preview";
    const img = document.createElement("img");
    img.src = image.url;
    img.alt = image.name;
    img.addEventListener("load", () => showTiles(frame, img));
    frame.append(img);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `remove ${image.name}`);
    remove.addEventListener("click", () => {
      state.images.splice(index, 1);
      showPreviews();
      byId("choose").focus();
    });
    item.append(frame, remove);
    list.append(item);
  });
}

// Draws the grid of overlapping tiles over an image, as the server will cut it.
async function showTiles(frame, img) {
  const query = `width=${img.naturalWidth}&height=${img.naturalHeight}`;
  const response = await fetch(`/v1/image-layout?${query}`, { headers: headers() });
  if (!response.ok) return;
  const layout = await response.json();
  for (const [left, top, width, height] of layout.tiles) {
    const box = document.createElement("span");
    box.className = "tile";
    box.style.left = `${100 * left}%`;
    box.style.top = `${100 * top}%`;
    box.style.width = `${100 * width}%`;
    box.style.height = `${100 * height}%`;
    frame.append(box);
  }
  img.title = `${layout.num_tiles} tiles, ${layout.num_tokens} tokens`;
}

function addTurn(question, images) {
  const item = document.createElement("li");
  const asked = document.createElement("div");
  asked.className = "question";
  for (const image of images) {
    const img = document.createElement("img");
    img.src = image.url;
    img.alt = image.name;
    asked.append(img);
  }
  asked.append(question);
  const answer = document.createElement("div");
  answer.className = "answer";
  const cost = document.createElement("div");
  cost.className = "cost";
  item.append(asked, answer, cost);
  byId("turns").append(item);
  item.scrollIntoView({ block: "end" });
  return { answer, cost };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function ask(question) {
  const images = state.images.splice(0);
  showPreviews();
  const content = images.map((image) => ({ type: "image_url", image_url: { url: image.url } }));
  content.push({ type: "text", text: question });
  const messages = [...state.messages, { role: "user", content }];
  const turn = addTurn(question, images);
  state.abort = new AbortController();
  busy(true);
  const start = performance.now();
  let text = "";
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal: state.abort.signal,
      body: JSON.stringify({
        model: state.model,
        messages,
        stream: true,
        stream_options: { include_usage: true },
        max_tokens: Number(byId("tokens").value) || 256,
        temperature: Number(byId("temperature").value) || 0,
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      text += chunk.choices[0]?.delta.content || "";
      turn.answer.textContent = text;
      if (chunk.usage) {
        const seconds = (performance.now() - start) / 1000;
        const { prompt_tokens: read, completion_tokens: said } = chunk.usage;
        const cached = chunk.usage.prompt_tokens_details.cached_tokens;
        turn.cost.textContent =
          `${read} tokens read (${cached} cached), ${said} generated, ${seconds.toFixed(1)} s`;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") {
      turn.cost.textContent = "stopped";
    } else {
      turn.cost.textContent = error.message;
      turn.cost.classList.add("error");
    }
  }
  if (text) {
    state.messages = [...messages, { role: "assistant", content: text }];
    turn.cost.append(" ", copyButton(text));
  } else {
    state.images.push(...images);
    showPreviews();
  }
  busy(false);
}

function copyButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  });
  return button;
}

function busy(yes) {
  byId("ask").disabled = yes;
  byId("stop").disabled = !yes;
  if (!yes) byId("question").focus();
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || byId("ask").disabled) return;
  byId("question").value = "";
  ask(question);
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
byId("stop").addEventListener("click", () => state.abort?.abort());
byId("reset").addEventListener("click", () => {
  state.abort?.abort();
  state.messages = [];
  state.images = [];
  byId("turns").replaceChildren();
  showPreviews();
});
byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  addFiles(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => addFiles(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("images").classList.add("over");
});
document.addEventListener("dragleave", () => byId("images").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("images").classList.remove("over");
  addFiles(event.dataTransfer.files);
});
connect();
setInterval(connect, 5000);
