"use strict";
// Pictures are sent two at a time; each has a card with its state, and in the end a slider and a download.
const AT_ONCE = 2;
const LOOK_MS = 400;
const ENDINGS = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/tiff": "tif" };
const WORDS = { receiving: "Sending", waiting: "Waiting", deblurring: "Deblurring", encoding: "Writing the result" };

const place = (id) => document.getElementById(id);
const cards = [];
let token = "";

const say = (text) => { place("announcer").textContent = text; };
const sizeText = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(2)} MB`);
const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

// crypto.randomUUID is missing on pages that came without TLS from another machine.
const newId = () => {
  const hex = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
};

class Card {
  constructor(file) {
    this.file = file;
    this.stage = "queued"; // queued, running, done, failed, blocked
    this.element = place("card").content.firstElementChild.cloneNode(true);
    this.find(".name").textContent = file.name;
    this.find(".window").setAttribute("aria-label", `${file.name}; scrolls when enlarged`);
    this.find(".remove").setAttribute("aria-label", `Stop ${file.name}`);
    this.find(".remove").addEventListener("click", () => this.remove());
    this.find(".again").addEventListener("click", () => {
      this.queue();
      tellQuality();
    });
    this.queue();
  }

  find(selector) { return this.element.querySelector(selector); }

  tell(text) { this.find(".state").textContent = text; }

  queue() {
    this.stage = "queued";
    this.element.classList.remove("failed");
    this.find(".again").hidden = true;
    this.find("progress").hidden = false;
    this.find("progress").removeAttribute("value");
    this.tell("In line");
    next();
  }

  run() {
    if (this.file.size === 0) { this.fail("The file is empty."); return; }
    this.stage = "running";
    this.id = newId();
    this.token = token;
    const query = new URLSearchParams();
    if (place("format").value) query.set("format", place("format").value);
    if (place("quality").value) query.set("quality", place("quality").value);
    const request = new XMLHttpRequest();
    this.request = request;
    request.open("POST", `v1/deblur?${query}`);
    request.responseType = "blob";
    request.setRequestHeader("Content-Type", this.file.type || "application/octet-stream");
    request.setRequestHeader("Accept", "image/*");
    request.setRequestHeader("X-Request-ID", this.id);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => this.sent(event));
    request.addEventListener("load", () => this.answered(request));
    request.addEventListener("error", () => this.fail("The server cannot be reached, or closed the connection."));
    request.send(this.file);
    this.timer = setInterval(() => this.look(), LOOK_MS);
  }

  sent(event) {
    const share = event.loaded / event.total;
    this.find("progress").value = 30 * share;
    this.tell(share < 1 ? `Sending: ${Math.round(100 * share)} %` : "Waiting");
  }

  // How far the server is.
  async look() {
    const id = this.id;
    try {
      const answer = await fetch(`v1/requests/${id}`, { headers: headers() });
      if (!answer.ok || this.stage !== "running" || this.id !== id) return;
      const told = await answer.json();
      if (told.state === "receiving" || this.stage !== "running") return;
      const tiles = told.state === "deblurring" && told.tiles_total > 1;
      const ahead = told.state === "waiting" && told.ahead > 0 ? `: ${told.ahead} before it` : "";
      this.tell(`${WORDS[told.state]}${tiles ? `: tile ${told.tiles_done + 1} of ${told.tiles_total}` : ahead}`);
      if (tiles) this.find("progress").value = 30 + (65 * told.tiles_done) / told.tiles_total;
      else this.find("progress").removeAttribute("value");
    } catch { /* the request itself will tell */ }
  }

  async answered(request) {
    clearInterval(this.timer);
    if (request.status === 200) { this.finish(request.response); return; }
    let words = `The server answered ${request.status}.`;
    try { words = JSON.parse(await request.response.text()).detail ?? words; } catch { /* no problem in JSON */ }
    if (request.status === 401) {
      this.block();
    } else if (request.status === 429 || (request.status === 503 && request.getResponseHeader("Retry-After"))) {
      const seconds = Math.min(Number(request.getResponseHeader("Retry-After")) || 5, 60);
      this.tell(`The server is busy: trying again in ${seconds} s`);
      this.timer = setTimeout(() => { this.stage = "queued"; next(); }, 1000 * seconds);
      this.stage = "held";
    } else {
      this.fail(words[0].toUpperCase() + words.slice(1));
      return;
    }
    next();
  }

  block() {
    this.stage = this.token === token ? "blocked" : "queued"; // another token was given since it was sent
    this.tell(this.stage === "blocked" ? "Waiting for the token" : "In line");
    if (this.stage === "blocked" && place("token-form").hidden) askForToken(token !== "");
  }

  fail(words) {
    clearInterval(this.timer);
    this.stage = "failed";
    this.element.classList.add("failed");
    this.find("progress").hidden = true;
    this.find(".again").hidden = false;
    this.find(".again").setAttribute("aria-label", `Try ${this.file.name} again`);
    this.ended();
    this.tell(words);
    say(`${this.file.name}: ${words}`);
    next();
  }

  finish(blob) {
    this.stage = "done";
    this.element.classList.add("done");
    this.find("progress").hidden = true;
    const ending = ENDINGS[blob.type] ?? "png";
    const stem = this.file.name.replace(/\.[^.]*$/, "");
    this.url = URL.createObjectURL(blob);
    this.type = blob.type;
    const link = this.find(".download");
    link.href = this.url;
    link.download = `${stem}-deblurred.${ending}`;
    link.textContent = `Download ${link.download}`;
    link.hidden = false;
    this.ended();
    this.tell(`Done, ${sizeText(blob.size)}`);
    say(`${this.file.name}: done`);
    place("download-all").hidden = cards.filter((card) => card.stage === "done").length < 2;
    this.show();
    next();
  }

  ended() {
    this.find(".remove").textContent = "Remove";
    this.find(".remove").setAttribute("aria-label", `Remove ${this.file.name}`);
  }

  async show() {
    this.source = URL.createObjectURL(this.file);
    const [before, after] = [this.find(".before"), this.find(".after")];
    before.src = this.source;
    after.src = this.url;
    before.alt = `${this.file.name} before`;
    after.alt = `${this.file.name} after`;
    try {
      await Promise.all([before.decode(), after.decode()]);
    } catch {
      const kind = [this.file.type, this.type].includes("image/tiff") ? "TIFF" : "this picture";
      const words = `No before and after: this browser does not show ${kind}. The download is whole.`;
      this.find(".note").textContent = words;
      this.find(".note").hidden = false;
      say(`${this.file.name}: done. ${words}`);
      return;
    }
    this.find(".viewer").hidden = false;
    compare(this.element);
  }

  remove() {
    clearInterval(this.timer);
    this.request?.abort();
    this.stage = "removed";
    for (const url of [this.url, this.source]) if (url) URL.revokeObjectURL(url);
    const at = cards.indexOf(this);
    cards.splice(at, 1);
    const neighbour = cards[Math.min(at, cards.length - 1)];
    this.element.remove();
    place("results").hidden = cards.length === 0;
    place("download-all").hidden = cards.filter((card) => card.stage === "done").length < 2;
    (neighbour ? neighbour.find(".remove") : place("files")).focus();
    next();
  }
}

// The line between before and after, moved by pointer and keyboard, and the zoom.
function compare(element) {
  const [viewer, frame, stage] = [".viewer", ".window", ".stage"].map((name) => element.querySelector(name));
  const picture = element.querySelector(".after");
  const range = element.querySelector("input[type=range]");
  const zoom = element.querySelector("select");

  const draw = () => {
    stage.style.setProperty("--split", `${range.value}%`);
    const share = Math.round(range.value);
    range.setAttribute("aria-valuetext", `${share} % before, ${100 - share} % after`);
  };
  const enlarge = () => {
    const fit = zoom.value === "fit";
    const centre = [frame.scrollLeft + frame.clientWidth / 2, frame.scrollTop + frame.clientHeight / 2];
    const [across, down] = [centre[0] / stage.offsetWidth, centre[1] / stage.offsetHeight];
    viewer.classList.toggle("enlarged", !fit);
    stage.style.width = fit ? "" : `${(picture.naturalWidth * zoom.value) / devicePixelRatio}px`;
    frame.scrollLeft = stage.offsetWidth * across - frame.clientWidth / 2;
    frame.scrollTop = stage.offsetHeight * down - frame.clientHeight / 2;
    if (!fit) range.value = (100 * (frame.scrollLeft + frame.clientWidth / 2)) / stage.offsetWidth;
    draw();
  };
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = (100 * (event.clientX - box.left)) / box.width;
    draw();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => { if (stage.hasPointerCapture(event.pointerId)) drag(event); });
  range.addEventListener("input", draw);
  zoom.addEventListener("change", enlarge);
  viewer.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
  draw();
}

function next() {
  const running = cards.filter((card) => card.stage === "running").length;
  const queued = cards.filter((card) => card.stage === "queued");
  if (queued.length && !qualityFits()) {
    for (const card of queued) card.tell("Waiting for a quality from 1 to 100");
    return;
  }
  for (const card of queued.slice(0, Math.max(AT_ONCE - running, 0))) {
    if (card.stage === "queued") card.run(); // one that fails at once has started others
  }
}

// Whether the quality can be sent; if not, its field says what it takes.
function qualityFits() {
  const fits = place("quality").checkValidity();
  place("quality").setAttribute("aria-invalid", String(!fits));
  place("quality-error").hidden = fits;
  return fits;
}

function tellQuality() {
  if (qualityFits()) return;
  place("quality").focus();
  say(place("quality-error").textContent);
}

function askForToken(refused) {
  place("token-form").hidden = false;
  place("token-error").hidden = !refused;
  place("token-error").textContent = refused ? "The token was not accepted" : ""; // hidden words would describe the field, too
  place("token").setAttribute("aria-invalid", String(refused));
  place("token").focus();
  place("token").select();
  say(refused ? place("token-error").textContent : "This server asks for a token");
}

function take(files) {
  const taken = [...files];
  if (taken.length === 0) return;
  place("results").hidden = false;
  for (const file of taken) {
    const card = new Card(file);
    cards.push(card);
    place("cards").append(card.element);
  }
  say(taken.length === 1 ? `${taken[0].name} is in line` : `${taken.length} pictures are in line`);
  next();
  tellQuality();
}

place("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
addEventListener("paste", (event) => take(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  place("drop").classList.add("over-it");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) place("drop").classList.remove("over-it"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  place("drop").classList.remove("over-it");
  take(event.dataTransfer.files);
});
place("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = place("token").value.trim();
  say("Trying the token"); // a refusal is then a new text, which is read out again
  if (!/^[\x21-\x7e]+$/.test(given)) { setTimeout(() => askForToken(true), LOOK_MS); return; } // no header holds it
  token = given;
  place("token-form").hidden = true;
  const blocked = cards.filter((card) => card.stage === "blocked");
  for (const card of blocked) card.queue();
  (blocked[0] ? blocked[0].find(".remove") : place("files")).focus();
});
place("quality").addEventListener("change", () => {
  if (!qualityFits()) say(place("quality-error").textContent);
  for (const card of cards) if (card.stage === "queued") card.tell("In line");
  next();
});
place("download-all").addEventListener("click", () => {
  for (const card of cards) if (card.stage === "done") card.find(".download").click();
});
