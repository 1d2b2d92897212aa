// The score page. Each file becomes a Card: it is sent, asked after until it is done, and shown beside the browser's own copy of the video.
"use strict";

const POLL_MS = 700;
const WITHIN_S = 0.001; // after a frame's begin: browsers round a time down, and would show the frame before
const STAGES = { read: "Opening the video", faces: "Looking for faces", score: "Scoring the faces", heat: "Drawing heat maps",
  report: "Writing the report" };
const byId = (id) => document.getElementById(id);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const percent = (share) => `${Math.round(100 * share)} %`;
const seconds = (s) => `${s.toFixed(1)} s`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const say = (text) => { // added, so that a screen reader says all of it
  const line = document.createElement("p"), news = byId("news");
  line.textContent = text;
  news.append(line);
  while (news.children.length > 20) news.firstChild.remove();
};
const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;
let model = null;
let sending = Promise.resolve(); // one file after the other: together they would not be faster

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

class Card {
  constructor(file) {
    this.file = file;
    this.gone = false;
    this.element = byId("card").content.firstElementChild.cloneNode(true);
    this.$(".name").textContent = file.name;
    this.element.setAttribute("aria-label", file.name);
    this.$(".remove").setAttribute("aria-label", `Remove ${file.name}`);
    this.$(".remove").addEventListener("click", () => this.remove());
    this.state("Waits to be sent.", null);
    byId("videos").prepend(this.element);
    sending = sending.then(() => this.send()).catch((error) => this.fail(error.message));
  }

  $(selector) { return this.element.querySelector(selector); }

  state(text, share) {
    this.$(".state").textContent = text;
    const bar = this.$("progress");
    if (share === null || share === undefined) bar.removeAttribute("value"); else bar.value = share;
  }

  async send() {
    if (this.gone) return;
    if (this.file.size === 0) throw new Error("The file is empty. Choose it again; if it stays so, download or copy it again.");
    const most = model && model.limits.max_bytes;
    if (most && this.file.size > most) {
      throw new Error(`The video has ${megabytes(this.file.size)}, and at most ${megabytes(most)} are taken. Cut it shorter, or write it with a lower bit rate.`);
    }
    for (;;) {
      const { status, answer, retry } = await this.upload();
      if (status === 202) this.url = `api/videos/${answer.id}`; // below this page, wherever a server in front puts it
      if (this.gone) return this.forget();
      if (status === 202) {
        this.follow().catch((error) => this.fail(error.message));
        return;
      }
      if (status !== 503) throw new Error(answer.detail || `The server answered ${status}. Try again.`);
      for (let left = retry || 30; left > 0 && !this.gone; left -= 1) {
        this.state(`Too many videos wait on the server. This one is sent again in ${left} s.`, null);
        await pause(1000);
      }
      if (this.gone) return;
    }
  }

  upload() {
    const form = new FormData();
    form.append("file", this.file);
    this.sent = false;
    return new Promise((done, fail) => {
      const request = this.request = new XMLHttpRequest();
      request.open("POST", "api/videos");
      request.responseType = "json";
      request.upload.onprogress = (event) => {
        const share = event.loaded / event.total;
        this.sent = share === 1;
        this.state(share < 1 ? `Sending: ${percent(share)} of ${megabytes(this.file.size)}` : "Sent.", share);
      };
      request.onload = () => done({ status: request.status, answer: request.response || {}, retry: Number(request.getResponseHeader("Retry-After")) });
      request.onerror = () => fail(new Error("The server cannot be reached, or it ended the upload. Is it still running? Then try again."));
      request.onabort = () => done({ status: 0, answer: {} });
      request.send(form);
    });
  }

  async follow() {
    let misses = 0, last = "";
    while (!this.gone) {
      let status;
      try {
        const response = await fetch(this.url);
        if (response.status >= 500) throw new TypeError(`The server answered with ${response.status}.`);
        status = await response.json();
        if (!response.ok) throw new Error(status.detail);
        misses = 0;
      } catch (error) {
        misses += 1;
        const passing = error instanceof TypeError || error instanceof SyntaxError; // the network's, or a page of a server between
        if (!passing || misses > 20) throw error;
        await pause(POLL_MS);
        continue;
      }
      if (this.gone) return;
      if (status.state === "done" || status.state === "failed") this.ended = true;
      if (status.state === "done") return this.show(status.result, status.expires_in_s);
      if (status.state === "failed") throw new Error(status.message);
      if (status.state === "waiting") {
        this.state(status.position === 1 ? "Waits: it is the next." : `Waits: ${plural(status.position - 1, "video", "videos")} before it.`, null);
      } else {
        const what = STAGES[status.stage] || "Begins";
        this.state(status.share === null ? `${what} ...` : `${what}: ${percent(status.share)}`, status.share);
      }
      const news = status.state === "waiting" ? "waits in the queue" : STAGES[status.stage] || "begins";
      if (news !== last) say(`${this.file.name}: ${news}`);
      last = news;
      await pause(POLL_MS);
    }
  }

  fail(message) {
    if (this.gone) return;
    this.$(".work").hidden = false;
    this.$("progress").hidden = true;
    this.$(".state").textContent = message;
    this.$(".state").classList.add("bad");
    this.element.classList.add("failed");
    say(`${this.file.name}: ${message}`);
  }

  forget() {
    if (!this.url) return;
    fetch(this.url, { method: "DELETE" })
      .then((response) => say(`${this.file.name} is ${response.ok || response.status === 404 ? "gone from" : "still on"} the server.`))
      .catch(() => say(`${this.file.name} may still be on the server, which does not answer.`));
  }

  remove() {
    this.gone = true;
    cards.delete(this);
    if (this.request && !this.sent) this.request.abort(); // else the answer is awaited: it names what is to be deleted
    this.forget();
    if (this.source) URL.revokeObjectURL(this.source);
    if (this.watch) this.watch.disconnect();
    const next = this.element.nextElementSibling;
    this.element.remove();
    (next ? next.querySelector(".remove") : byId("file")).focus();
    say(`${this.file.name} is removed.`);
  }

  show(result, expires) {
    this.result = result;
    this.video = result.videos[0];
    this.$(".work").hidden = true;
    this.$(".found").hidden = false;
    this.verdict();
    this.source = URL.createObjectURL(this.file);
    const player = this.player = this.$("video");
    // Browsers differ in whether currentTime begins at 0 or at the file's first timestamp: the first frame that is shown tells, unless
    // somebody went to another before: then it is taken for 0, which it nearly always is.
    this.begin = null;
    if (player.requestVideoFrameCallback) {
      player.requestVideoFrameCallback((_, frame) => {
        this.begin ??= frame.mediaTime;
        this.draw();
      });
    }
    player.src = this.source;
    player.setAttribute("aria-label", `The video ${this.file.name}`);
    player.addEventListener("error", () => { this.$(".unplayable").hidden = false; });
    player.addEventListener("loadedmetadata", () => {
      if (!player.videoWidth) this.$(".unplayable").hidden = false; // the sound plays, the pictures do not
      this.draw();
    });
    player.addEventListener("timeupdate", () => this.playhead());
    this.$(".json").href = `${this.url}/result.json`;
    this.$(".report").href = `${this.url}/report.html`;
    const until = new Date(Date.now() + 1000 * expires).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    this.$(".expires").textContent = `The server forgets all this at ${until}, or before if many others come.`;
    for (const image of this.element.querySelectorAll(".pair img")) image.addEventListener("error", () => this.forgotten());
    if (this.video.subject === "frame") this.whole();
    for (const link of this.element.querySelectorAll(".links a")) link.target = "_blank";
    this.faceless();
    if (result.faces.length) this.faces(); else for (const part of [".look", ".all"]) this.$(part).hidden = true;
    this.$(".seen").classList.toggle("faceless-only", !result.faces.length);
    if (result.maps) {
      this.$(".own").hidden = false;
      this.$(".maps").src = `${this.url}/maps.png`;
    }
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.$(".timeline"));
  }

  // A model that looks at whole frames: nobody looked for faces.
  whole() {
    for (const part of [".crop + figcaption", ".before", ".after", ".all summary"]) {
      const element = this.$(part);
      element.textContent = element.textContent.replace("face", "frame").replace("Face", "Frame");
    }
    this.$(".faceless").hidden = true;
  }

  forgotten() {
    this.$(".expires").textContent = "The server has forgotten this video: send it again.";
    this.$(".expires").classList.add("bad");
  }

  verdict() {
    const { video, result } = this;
    const answer = this.$(".answer"), words = this.$(".words");
    if (video.score === null) {
      answer.textContent = "No verdict";
      words.textContent = `There is ${video.error}.`;
      this.$(".meaning").textContent = "Without a face there is nothing to score. Try a part of the video in which a face is larger and turned to the camera.";
      say(`${this.file.name}: no verdict, ${video.error}`);
      return;
    }
    answer.textContent = video.verdict + (result.guess ? "?" : "");
    answer.classList.add(video.verdict.toLowerCase());
    words.textContent = `${result.calibrated ? "probability of a fake" : "score"} ${result.shown}: ${result.sureness}`;
    const short = video.short_tracks ? ` No face is in ${result.min_coverage_percent} % of the ${result.unit}: the one that is there longest decides.` : "";
    this.$(".meaning").textContent = result.meaning + short;
    this.$(".limits").hidden = false;
    const x = (share) => 20 + 300 * share;
    this.$(".scale").append(svg("svg", { viewBox: "0 0 340 48", role: "img", preserveAspectRatio: "xMinYMid meet",
      "aria-label": `${result.shown} on a scale from 0, real, to 1, fake; the threshold is ${result.threshold}` },
      svg("line", { x1: x(0), x2: x(1), y1: 20, y2: 20, class: "path" }),
      svg("line", { x1: x(result.threshold), x2: x(result.threshold), y1: 12, y2: 28, class: "limit" }),
      svg("g", { class: `point ${video.score > result.threshold ? "over" : "under"}` },
        svg("circle", { cx: x(video.score), cy: 20, r: 8, class: "dot" })),
      svg("text", { x: x(0), y: 43, "text-anchor": "middle" }, "0 real"),
      svg("text", { x: x(result.threshold), y: 43, "text-anchor": "middle" }, `threshold ${result.threshold}`),
      svg("text", { x: x(1), y: 43, "text-anchor": "middle" }, "1 fake")));
    say(`${this.file.name}: ${video.verdict}, ${words.textContent}. ${result.meaning}`);
  }

  faceless() {
    const { frames_without_face: without, unit } = this.result, all = this.video.frames_sampled;
    this.$(".faceless").textContent = without.length
      ? `No face was found ${unit === "clips" ? "throughout" : "in"} ${without.length} of ${all} sampled ${unit}:`
      : `A face was found ${unit === "clips" ? "throughout" : "in"} each of the ${all} sampled ${unit}.`;
    if (unit === "clips") this.$(".crop + figcaption").textContent = "The first frame of the clip, as the model got it";
    this.$(".missed").replaceChildren(...without.map((frame) => {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.textContent = seconds(frame.time_s);
      button.addEventListener("click", () => this.seek(frame.time_s));
      item.append(button);
      return item;
    }));
  }

  faces() {
    const { faces } = this.result;
    const counted = faces.filter((face) => face.counted);
    const strip = this.$(".strip");
    this.buttons = faces.map((face) => {
      const button = document.createElement("button"), image = document.createElement("img");
      image.loading = "lazy";
      image.alt = "";
      image.src = `${this.url}/faces/${face.n}.jpg`;
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", this.name(face));
      button.append(image, `${seconds(face.time_s)}: ${face.score.toFixed(2)}`);
      button.addEventListener("click", () => this.choose(face.n, true));
      const item = document.createElement("li");
      item.append(button);
      strip.append(item);
      return button;
    });
    for (const [step, by] of [[".before", -1], [".after", 1]]) { // aria-disabled at the ends: a disabled button would throw the focus away
      this.$(step).addEventListener("click", () => { if (faces[this.chosen + by]) this.choose(this.chosen + by, true); });
    }
    this.choose(counted.reduce((best, face) => (face.score > best.score ? face : best), counted[0] || faces[0]).n, false);
  }

  name(face) {
    const what = this.video.subject === "frame" ? "frame" : `face ${face.track_id}`;
    return `${what} at ${seconds(face.time_s)}, score ${face.score.toFixed(3)}, ${face.score > this.video.raw_threshold ? "above" : "below"} the threshold`;
  }

  // Show a face. seek: the video goes there too.
  choose(n, seek) {
    const face = this.result.faces[n];
    this.chosen = n;
    const name = this.name(face);
    this.$(".which").textContent = name[0].toUpperCase() + name.slice(1);
    this.$(".crop").src = `${this.url}/faces/${n}.jpg`;
    this.$(".crop").alt = `The crop of ${this.name(face)}`;
    this.$(".hot").hidden = this.$(".about").hidden = !face.heat;
    if (this.result.drawn) this.$(".drawn").textContent = this.result.drawn;
    this.$(".pair").classList.toggle("one", !face.heat);
    if (face.heat) {
      this.$(".heat").src = `${this.url}/heat/${n}.jpg`;
      this.$(".heat").alt = `The heat map of ${this.name(face)}`;
    }
    this.$(".without").hidden = face.heat;
    this.$(".without").textContent = this.result.faces.some((other) => other.heat)
      ? "No heat map: there are so many pictures that only some got one, those that decide the verdict first."
      : `This model cannot say which places of the picture spoke for a fake${this.result.maps ? "; what it shows of itself is below" : ""}.`;
    this.$(".before").setAttribute("aria-disabled", String(n === 0));
    this.$(".after").setAttribute("aria-disabled", String(n === this.result.faces.length - 1));
    for (const [k, button] of this.buttons.entries()) button.setAttribute("aria-pressed", String(k === n));
    for (const [k, point] of (this.points || new Map())) point.setAttribute("aria-pressed", String(k === n));
    this.reach(n);
    if (seek) {
      this.seek(face.time_s);
      say(`Shown: ${this.name(face)}`);
    }
  }

  reach(n) { // of the points of a track, Tab leads to this one
    const { track_id: track } = this.result.faces[n];
    for (const [k, point] of (this.points || new Map())) {
      if (this.result.faces[k].track_id === track) point.setAttribute("tabindex", k === n ? "0" : "-1");
    }
  }

  seek(time) {
    this.player.pause();
    this.begin ??= 0;
    this.player.currentTime = this.begin + time + WITHIN_S;
  }

  draw() {
    const { faces, frames_without_face: without } = this.result, threshold = this.video.raw_threshold;
    const box = this.$(".timeline"), width = box.clientWidth;
    const last = Math.max(0.1, ...faces.map((face) => face.time_s), ...without.map((frame) => frame.time_s));
    const end = Number.isFinite(this.player.duration) ? Math.max(this.player.duration - this.begin, last) : last;
    if (!width || (this.drawn && this.drawn.width === width && this.drawn.end === end)) return;
    this.drawn = { width, end };
    const tracks = [...new Set(faces.map((face) => face.track_id))];
    const left = 34, right = 10, tall = 96, gap = 24;
    const x = (time) => left + (width - left - right) * (time / end);
    this.x = x;
    const root = svg("svg", { width, role: "group", "aria-label": "Scores over time" });
    this.points = new Map();
    let top = 0;
    for (const track of tracks) {
      const mine = faces.filter((face) => face.track_id === track);
      const low = top + gap + tall, y = (score) => low - 6 - (tall - 12) * score;
      const title = this.video.subject === "frame" ? "Whole frames" : `Face ${track}${mine[0].counted ? "" : ", too rare to count"}`;
      const lane = svg("g", { role: "group", "aria-label": `${title}: ${plural(mine.length, "point", "points")}` });
      if (!mine[0].counted) lane.classList.add("other");
      const ground = svg("rect", { x: left, y: top + gap, width: width - left - right, height: tall, class: "lane", rx: 4 });
      ground.addEventListener("click", (event) => { // the nearest point: fingers are wide
        const at = event.clientX - root.getBoundingClientRect().left;
        const near = mine.reduce((best, face) => (Math.abs(x(face.time_s) - at) < Math.abs(x(best.time_s) - at) ? face : best));
        this.choose(near.n, true);
      });
      lane.append(ground,
        svg("text", { x: left + 4, y: top + gap - 7 }, title),
        svg("text", { x: left - 5, y: y(1) + 8, "text-anchor": "end" }, "fake"), svg("text", { x: left - 5, y: y(0), "text-anchor": "end" }, "real"),
        svg("line", { x1: left, x2: width - right, y1: y(threshold), y2: y(threshold), class: "limit" }),
        svg("polyline", { points: mine.map((face) => `${x(face.time_s)},${y(face.score)}`).join(" "), class: "path", "pointer-events": "none" }));
      mine.forEach((face, k) => lane.append(this.point(face, mine, k, x(face.time_s), y(face.score), threshold)));
      root.append(lane);
      top += gap + tall;
    }
    for (const frame of without) root.append(svg("line", { x1: x(frame.time_s), x2: x(frame.time_s), y1: top + 6, y2: top + 18, class: "none" }));
    if (without.length) root.append(svg("text", { x: left - 5, y: top + 16, "text-anchor": "end" }, "none"));
    this.$(".legend .other").hidden = faces.every((face) => face.counted);
    this.$(".legend .none").hidden = !without.length;
    this.$(".legend .limit").textContent = threshold.toPrecision(3);
    this.$(".legend .raw").hidden = !this.result.calibrated || !faces.length;
    for (const words of this.element.querySelectorAll(".legend .points")) words.hidden = !faces.length;
    if (!faces.length) this.$(".time h3").textContent = "Frames that were looked at";
    this.$(".time").hidden = !faces.length && !without.length;
    const foot = top + (without.length ? 22 : 4);
    root.append(svg("line", { x1: left, x2: width - right, y1: foot, y2: foot, class: "axis" }),
      svg("text", { x: left, y: foot + 15 }, "0 s"), svg("text", { x: width - right, y: foot + 15, "text-anchor": "end" }, seconds(end)));
    this.line = svg("line", { y1: 0, y2: foot, class: "now", "pointer-events": "none" });
    root.append(this.line);
    root.setAttribute("height", foot + 20);
    const focused = document.activeElement && document.activeElement.closest && document.activeElement.closest(".timeline") === box;
    box.replaceChildren(root);
    this.playhead();
    if (focused && this.points.has(this.chosen)) this.points.get(this.chosen).focus();
  }

  point(face, mine, k, cx, cy, threshold) {
    const over = face.score > threshold;
    const here = mine.some((other) => other.n === this.chosen) ? face.n === this.chosen : k === 0;
    const dot = over ? svg("rect", { x: cx - 4.5, y: cy - 4.5, width: 9, height: 9, class: "dot" }) : svg("circle", { cx, cy, r: 5, class: "dot" });
    const point = svg("g", { class: `point ${over ? "over" : "under"}`, role: "button", tabindex: here ? 0 : -1, "aria-pressed": String(face.n === this.chosen),
      "aria-label": this.name(face) }, svg("circle", { cx, cy, r: 8, class: "ring" }), dot);
    this.points.set(face.n, point);
    point.addEventListener("click", () => this.choose(face.n, true));
    point.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: k - 1, ArrowRight: k + 1, Home: 0, End: mine.length - 1 }[event.key];
      if (event.key === "Enter" || event.key === " ") this.choose(face.n, true);
      else if (to === undefined) return;
      else if (mine[to]) {
        this.reach(mine[to].n);
        this.points.get(mine[to].n).focus();
      }
      event.preventDefault();
    });
    return point;
  }

  playhead() {
    if (!this.line) return;
    const at = this.x(Math.max(0, this.player.currentTime - this.begin));
    this.line.setAttribute("x1", at);
    this.line.setAttribute("x2", at);
  }
}

async function describe() {
  const list = byId("model");
  const add = (term, text) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = term;
    dd.textContent = text;
    list.append(dt, dd);
  };
  try {
    const response = await fetch("api/model");
    if (!response.ok) throw new Error(response.status);
    model = await response.json();
  } catch {
    list.querySelector("dd").textContent = "The server does not answer.";
    return;
  }
  const { limits } = model;
  if (!model.detector) { // it looks at whole frames
    Object.assign(STAGES, { faces: "Reading the frames", score: "Scoring the frames" });
    document.querySelector("header p").textContent = "Frames of a video are scored, and you see why. A score is evidence, not proof.";
  }
  byId("limits").textContent = `At most ${megabytes(limits.max_bytes)} and ${Math.round(model.max_seconds / 6) / 10} min each. They are scored on the machine ` +
    "that serves this page, and deleted there as soon as that is done.";
  list.replaceChildren();
  add("Model", model.members.map((m) => `${m.model} on ${m.looks_at} of ${m.input_pixels} x ${m.input_pixels} pixels`).join("; ") +
    (model.listens ? ", and the sound around them" : ""));
  add("Score", model.calibrated ? `calibrated: ${model.calibration}` : "not calibrated: it orders videos, and is no probability");
  add("Trained on", `${plural(model.training_groups, "group", "groups")} of videos (split ${model.split || "unknown"}). It knows the kinds of fakes that were among them.`);
  add("Faces", model.detector ? `found by ${model.detector} in ${model.frames} frames of a video, cut with a margin of ${model.crop_margin}` : `whole frames, ${model.frames} of a video`);
  add("It shows", [model.heat_maps && "heat maps (Grad-CAM)", model.maps && "maps of its own"].filter(Boolean).join(", ") || "no maps: it cannot say where it looks");
  add("Weights", `SHA-256 ${model.weights_sha256.split("; ").map((one) => `${one.slice(0, 16)}...`).join(", ")}`);
}

const cards = new Set();
function take(files) { for (const file of files) cards.add(new Card(file)); }

addEventListener("pagehide", (event) => { // nobody will see what becomes of them, and others wait
  if (event.persisted) return;
  for (const card of cards) if (card.url && !card.ended) fetch(card.url, { method: "DELETE", keepalive: true });
});

const ready = describe();
byId("file").addEventListener("change", async (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // the same file may be chosen again
  await ready;
  take(files);
});
const drop = byId("drop");
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault()); // beside the field too: the page would be left
document.addEventListener("dragover", () => drop.classList.add("over"));
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => drop.classList.remove("over"));
document.addEventListener("drop", async (event) => {
  const files = [...event.dataTransfer.items].filter((item) => item.kind === "file" && !item.webkitGetAsEntry()?.isDirectory).map((item) => item.getAsFile());
  byId("folders").hidden = files.length === event.dataTransfer.files.length;
  await ready;
  take(files);
});
