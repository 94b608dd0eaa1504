"use strict";
// Marks photos with another class, or as left out, and makes corrections.csv of the marks.
// Cells of that file are binary strings, a character per byte, because names need not be UTF-8.
const data = JSON.parse(document.getElementById("data").textContent);
const bar = document.querySelector(".corrections");
const status = bar.querySelector("[role=status]");
const [clearButton, downloadButton] = bar.querySelectorAll("button");
const photos = [...document.querySelectorAll(".photo")];
const OUT = "out"; // the mark of a photo that is left out; other marks are numbers of classes
const storageKey = `hogwear ${data.id}`;
let marks = load(); // {photo: mark}; a photo may be on the page several times

function load() {
  try { // a browser may forbid storage
    return JSON.parse(localStorage.getItem(storageKey)) || {};
  } catch {
    return {};
  }
}

function save() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(marks));
  } catch { /* then the marks last as long as the page */ }
}

function setMark(photo, mark) {
  if (mark === undefined) delete marks[photo];
  else marks[photo] = mark;
  save();
  show();
}

function makeButton(value, text, name) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", value, textContent: text });
  button.setAttribute("aria-label", `${text}: ${name}`);
  return button;
}

function addControls(article) {
  const { photo, suggestion } = article.dataset;
  const own = article.dataset.class;
  const name = article.querySelector("[title]").title;
  const controls = document.createElement("div");
  controls.className = "marks";
  const other = makeButton("other", "Other class", name);
  const out = makeButton("out", "Leave out", name);
  const select = document.createElement("select");
  select.setAttribute("aria-label", `Class of ${name}`);
  select.hidden = true;

  function fill() { // late, because there may be many photos and many classes
    if (select.length) return;
    select.append(new Option("Choose a class", ""));
    data.classes.forEach((each, i) => {
      if (each.name !== own) select.append(new Option(each.name, i));
    });
  }

  other.addEventListener("click", () => {
    if (typeof marks[photo] === "number" || !select.hidden) {
      select.hidden = true;
      return setMark(photo);
    }
    fill();
    const suggested = data.classes.findIndex((each) => each.name === suggestion && suggestion !== own);
    setMark(photo, suggested < 0 ? undefined : suggested);
    select.hidden = false;
    select.value = suggested < 0 ? "" : suggested;
    if (suggested < 0) select.focus();
  });
  out.addEventListener("click", () => setMark(photo, marks[photo] === OUT ? undefined : OUT));
  select.addEventListener("change", () => {
    setMark(photo, select.value === "" ? undefined : Number(select.value));
    select.hidden = false;
  });
  controls.append(other, out, select);
  article.append(controls);
  article.show = (mark) => {
    const isOther = typeof mark === "number";
    article.classList.toggle("other", isOther);
    article.classList.toggle("out", mark === OUT);
    other.setAttribute("aria-pressed", isOther);
    out.setAttribute("aria-pressed", mark === OUT);
    if (isOther) fill();
    select.hidden = !isOther;
    if (isOther) select.value = mark;
  };
}

function show() {
  for (const article of photos) article.show(marks[article.dataset.photo]);
  const all = Object.values(marks);
  const out = all.filter((mark) => mark === OUT).length;
  status.textContent = all.length
    ? `Marked: ${all.length - out} with another class, ${out} to leave out.`
    : "No photo is marked.";
  clearButton.disabled = downloadButton.disabled = !all.length;
}

function makeCsv() {
  const rows = [data.header.map(atob)];
  for (const { photo, cells } of data.rows) {
    if (!(photo in marks)) rows.push(cells.map(atob));
  }
  for (const [photo, mark] of Object.entries(marks)) {
    const row = data.header.map(() => "");
    row[data.fileColumn] = atob(photo);
    row[data.classColumn] = atob(mark === OUT ? data.leaveOut : data.classes[mark].cell);
    rows.push(row);
  }
  const quote = (cell) => `"${cell.replaceAll('"', '""')}"`;
  return rows.map((row) => `${row.map(quote).join(",")}\n`).join("");
}

function download() {
  const bytes = Uint8Array.from(makeCsv(), (character) => character.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "text/csv" }));
  link.download = "corrections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

photos.forEach(addControls);
clearButton.addEventListener("click", () => {
  marks = {};
  save();
  show();
});
downloadButton.addEventListener("click", download);
bar.hidden = false;
show();
