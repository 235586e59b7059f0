// The page: it asks the program behind it, and draws what it says. Texts are only ever set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const TAG_COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#8fb8ff", "#b5b5b5"];
const LABEL_WIDTH = 110;
let model = null;
let map = null; // the last answer to /look
let table = null; // the last answer to /positions
let chosen = null; // [query, key], the cell that is read out
const turns = {}; // the last question of each kind, so that a late answer to an earlier one is dropped

// --- Asking ----------------------------------------------------------------------------------------------------------

async function call(path, body) {
  const turn = (turns[path] = (turns[path] || 0) + 1);
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response, answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch {
    throw new Error("The program behind this page has stopped: start hf-tfenc demo again.");
  }
  if (turn !== turns[path]) return null;
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

let working = 0;

// While something is asked, the page says that it is busy.
async function busy(work) {
  working++;
  $("main").setAttribute("aria-busy", "true");
  try {
    await work();
  } finally {
    working--;
    $("main").setAttribute("aria-busy", String(working > 0));
  }
}

const question = () => ({ text: $("text").value, second: $("second-field").hidden ? "" : $("second").value });

const ask = () =>
  busy(async () => {
    await Promise.all([answer(), look()]);
    if ($("look-problem").textContent === $("problem").textContent) $("look-problem").textContent = "";
  });

async function answer() {
  try {
    const said = await call("/answer", { ...question(), temperature: Number($("temperature").value) });
    if (!said) return;
    $("problem").textContent = "";
    $("answer").replaceChildren(...said.parts.map((part) => PARTS[part.kind](part)));
  } catch (error) {
    $("problem").textContent = error.message;
    $("answer").replaceChildren();
  }
}

async function look() {
  $("hide-padding").disabled = !$("padding").checked;
  try {
    const seen = await call("/look", {
      ...question(),
      layer: Number($("layer").value),
      head: Number($("head").value),
      window: $("window").value === "" ? null : Number($("window").value),
      look_ahead: $("look-ahead").checked,
      padding: $("padding").checked ? 4 : 0,
      hide_padding: $("hide-padding").checked,
    });
    if (!seen) return;
    if (String(seen.ids) !== String(map?.ids)) chosen = null; // else the same cell is compared under another head
    map = seen;
    $("look-problem").textContent = "";
    $("inside").hidden = false;
    showTokens();
    drawMap();
    drawPositions();
  } catch (error) {
    $("look-problem").textContent = error.message;
    $("inside").hidden = true;
  }
}

async function lookAtPositions() {
  try {
    const seen = await call("/positions", { layer: Number($("layer").value) });
    if (!seen) return;
    table = seen.table;
    $("positions-text").textContent = seen.text;
  } catch (error) {
    table = null;
    $("positions-text").textContent = error.message;
  }
  $("positions-readout").textContent = "";
  drawPositions();
}

// --- Answers ---------------------------------------------------------------------------------------------------------

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// White space as signs; a mark that would combine with what stands before it gets a place of its own.
function visible(text) {
  const signs = text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  return /^\p{M}/u.test(signs) ? "◌" + signs : signs;
}

const PARTS = {
  bars(part) {
    const made = element("div", "bars");
    made.append(element("h3", "", part.title));
    for (const { label, value } of part.bars) {
      const track = element("div", "track");
      const bar = element("div", "bar");
      bar.style.width = `${100 * Math.max(0, Math.min(1, value))}%`;
      track.append(bar);
      const name = element("div", "label", part.tokens ? visible(label) : label);
      name.dir = "auto";
      made.append(name, track, element("div", "value", value.toFixed(3)));
    }
    return made;
  },
  text(part) {
    const made = element("div", "written");
    made.dir = "auto";
    made.append(element("span", "given", part.given), element("span", "new", part.text));
    return made;
  },
  spans(part) {
    const made = element("div", "spans");
    made.dir = "auto";
    const kinds = [...new Set(part.spans.map(({ tag }) => kind(tag)))].filter((tag) => tag !== "O").sort();
    for (const { word, tag, chance } of part.spans) {
      const span = element("span", "word", word);
      if (tag !== "O") {
        span.classList.add("tagged");
        span.style.background = TAG_COLOURS[kinds.indexOf(kind(tag)) % TAG_COLOURS.length];
        span.append(element("span", "tag", tag));
        span.title = `${tag} ${chance.toFixed(3)}`;
      }
      made.append(span, " ");
    }
    return made;
  },
};

const kind = (tag) => tag.replace(/^[BILUES]-/, "");

// --- The inside ------------------------------------------------------------------------------------------------------

function showTokens() {
  const shown = map.weights.length;
  const whole = `${map.tokens.length} tokens. A · is a space; the number of each appears where you point.`;
  const part = shown < map.tokens.length ? ` The map shows the first ${shown}.` : "";
  $("cut").textContent = whole + part;
  $("tokens").replaceChildren(
    ...map.tokens.map((token, place) => {
      const item = element("li", map.special[place] ? "special" : "", visible(token));
      item.title = `position ${place}, id ${map.ids[place]}`;
      return item;
    }),
  );
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const parse = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));

// The colour at a share of the way from the first colour to the last.
function ramp(...names) {
  const stops = names.map((name) => parse(style(name)));
  return (share) => {
    const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[first].map((from, i) => Math.round(from + (place - first) * (stops[first + 1][i] - from)));
    return `rgb(${mixed})`;
  };
}

function prepare(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  return pen;
}

function shorten(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  const letters = [...text];
  while (letters.length && pen.measureText(letters.join("") + "…").width > width) letters.pop();
  return letters.join("") + "…";
}

// Where the cells of the map are: all in CSS pixels.
function layout(pen, labels) {
  const room = $("map").parentElement.clientWidth;
  pen.font = "12px ui-monospace, monospace";
  const widest = Math.ceil(Math.max(...labels.map((label) => pen.measureText(label).width))) + 8;
  let margin = Math.min(widest, room < 500 ? 70 : LABEL_WIDTH);
  let cell = Math.min(36, Math.floor((room - margin) / labels.length));
  if (cell < 9) {
    margin = 0; // too small for labels: what is pointed at is read out
    cell = Math.max(2, Math.min(9, Math.floor(room / labels.length)));
  }
  return { margin, cell, size: margin + cell * labels.length };
}

function drawMap() {
  if (!map) return;
  const labels = map.tokens.slice(0, map.weights.length).map(visible);
  const canvas = $("map");
  const { margin, cell, size } = layout(canvas.getContext("2d"), labels);
  const pen = prepare(canvas, size, size);
  const most = Math.max(...map.weights.flat());
  const colour = ramp("--none", "--all");
  const hatch = style("--hatch");
  map.weights.forEach((row, query) =>
    row.forEach((weight, key) => {
      const [x, y] = [margin + key * cell, margin + query * cell];
      if (map.seen[query][key]) {
        pen.fillStyle = colour(weight / most);
        pen.fillRect(x, y, cell - (cell > 5), cell - (cell > 5));
        return;
      }
      pen.strokeStyle = hatch;
      pen.beginPath();
      pen.moveTo(x, y + cell);
      pen.lineTo(x + cell, y);
      pen.stroke();
    }),
  );
  if (margin) {
    pen.font = `${Math.min(12, cell)}px ui-monospace, monospace`;
    pen.fillStyle = style("--ink");
    pen.textBaseline = "middle";
    labels.forEach((label, place) => {
      const text = shorten(pen, label, margin - 8);
      const middle = margin + (place + 0.5) * cell;
      pen.textAlign = "right";
      pen.fillText(text, margin - 5, middle);
      pen.save();
      pen.translate(middle, margin - 5);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(text, 0, 0);
      pen.restore();
    });
  }
  if (chosen) {
    pen.strokeStyle = style("--below");
    pen.lineWidth = 2;
    pen.strokeRect(margin + chosen[1] * cell, margin + chosen[0] * cell, cell - 1, cell - 1);
  }
  canvas.setAttribute(
    "aria-label",
    `Attention of layer ${Number($("layer").value) + 1}, head ${Number($("head").value) + 1} over ${labels.length} ` +
      "tokens; the arrow keys read it out.",
  );
  $("most").textContent = most.toFixed(2);
  readOut();
}

function readOut() {
  if (!chosen) {
    $("readout").textContent = "Point at a cell to read its weight.";
    return;
  }
  const [query, key] = chosen;
  const said = map.seen[query][key] ? map.weights[query][key].toFixed(4) : "hidden by a mask";
  const name = (place) => {
    const made = element("bdi", "", visible(map.tokens[place]));
    made.title = `position ${place}`;
    return made;
  };
  $("readout").replaceChildren(name(query), ` (${query}) looks at `, name(key), ` (${key}): `, element("b", "", said));
}

function choose(query, key) {
  const last = map.weights.length - 1;
  const inside = (place) => Math.max(0, Math.min(last, place));
  chosen = [inside(query), inside(key)];
  drawMap();
}

function pointAtMap(event) {
  if (!map) return;
  const box = $("map").getBoundingClientRect();
  const labels = map.tokens.slice(0, map.weights.length).map(visible);
  const { margin, cell } = layout($("map").getContext("2d"), labels);
  const [query, key] = [event.clientY - box.top, event.clientX - box.left].map((at) => Math.floor((at - margin) / cell));
  if (query >= 0 && key >= 0) choose(query, key);
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function stepOnMap(event) {
  const step = ARROWS[event.key];
  if (!map || !step) return;
  event.preventDefault();
  choose(...(chosen ? [chosen[0] + step[0], chosen[1] + step[1]] : [0, 0]));
}

function drawPositions() {
  $("positions").hidden = $("positions-legend").hidden = !table;
  if (!table) return;
  const cell = positionsCell();
  const pen = prepare($("positions"), cell.width * table[0].length, cell.height * table.length);
  const most = Math.max(...table.flat().map(Math.abs)) || 1;
  const colour = ramp("--below", "--middle", "--above");
  table.forEach((row, position) =>
    row.forEach((value, feature) => {
      const [left, right] = [feature, feature + 1].map((at) => Math.round(at * cell.width));
      pen.fillStyle = colour((value / most + 1) / 2);
      pen.fillRect(left, position * cell.height, right - left, cell.height);
    }),
  );
  $("lowest").textContent = (-most).toFixed(2).replace("-", "−");
  $("highest").textContent = most.toFixed(2);
  $("positions").setAttribute(
    "aria-label",
    `${table.length} positions downwards, ${table[0].length} features across, from ${-most} to ${most}.`,
  );
  if (!$("positions-readout").textContent) {
    $("positions-readout").textContent = "Positions go down, features across: point at one to read it.";
  }
}

const positionsCell = () => ({ width: Math.min(14, $("positions").parentElement.clientWidth / table[0].length), height: 5 });

function pointAtPositions(event) {
  const box = $("positions").getBoundingClientRect();
  const cell = positionsCell();
  const position = Math.floor((event.clientY - box.top) / cell.height);
  const feature = Math.floor((event.clientX - box.left) / cell.width);
  const value = table?.[position]?.[feature];
  if (value !== undefined) {
    $("positions-readout").textContent = `position ${position}, feature ${feature}: ${value.toFixed(3)}`;
  }
}

// --- Beginning -------------------------------------------------------------------------------------------------------

function fill(select, count, name) {
  for (let place = 0; place < count; place++) {
    const option = element("option", "", name(place));
    option.value = place;
    select.append(option);
  }
}

async function begin() {
  model = await call("/about");
  document.title = `${model.name} · hf_tfenc`;
  $("name").textContent = model.name;
  $("facts").textContent =
    `${model.head} · ${model.parameters.toLocaleString("en")} parameters · ${model.layers.length} layers of ` +
    `${model.heads} heads, width ${model.hidden_size} · ${model.position_embedding_type} positions · ` +
    `up to ${model.longest} tokens`;
  $("title").textContent = model.title;
  $("hint").textContent = model.hint;
  $("ask").textContent = model.button;
  $("text").value = model.example;
  $("second-field").hidden = !model.second;
  $("second-label").textContent = model.second;
  $("second").value = model.second_example;
  $("second").rows = model.second_example ? 5 : 2;
  $("temperature-field").hidden = !model.temperature;
  $("insert").hidden = !model.mask;
  $("insert").textContent = `Insert ${model.mask}`;
  $("look-ahead").checked = model.look_ahead;
  fill($("layer"), model.layers.length, (place) => {
    const window = model.layers[place];
    return `${place + 1}${window === null ? "" : ` (window ${window})`}`;
  });
  fill($("head"), model.heads, (place) => `${place + 1}`);

  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  $("insert").addEventListener("click", () => {
    $("text").setRangeText(model.mask, $("text").selectionStart, $("text").selectionEnd, "end");
    $("text").focus();
  });
  for (const id of ["layer", "head", "window", "look-ahead", "padding", "hide-padding"]) {
    $(id).addEventListener("change", () => busy(look));
  }
  $("layer").addEventListener("change", () => busy(lookAtPositions));
  $("map").addEventListener("pointermove", pointAtMap);
  $("map").addEventListener("pointerdown", pointAtMap);
  $("map").addEventListener("keydown", stepOnMap);
  $("positions").addEventListener("pointermove", pointAtPositions);
  $("positions").addEventListener("pointerdown", pointAtPositions);
  const draw = () => {
    drawMap();
    drawPositions();
  };
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  await Promise.all([ask(), busy(lookAtPositions)]);
}

busy(begin).catch((error) => ($("problem").textContent = error.message));
