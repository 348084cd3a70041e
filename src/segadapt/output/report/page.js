"use strict";

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// A figure's panels become a stage on which two of them are compared.
for (const figure of document.querySelectorAll("figure.picture")) {
  const panels = [...figure.querySelectorAll(".panel")].map((panel) => ({
    caption: panel.querySelector("p").textContent,
    image: panel.querySelector("img"),
  }));
  const name = figure.querySelector("figcaption").textContent;
  const chooser = (label, chosen) => {
    const select = element("select", {});
    select.append(...panels.map(({ caption }, index) => element("option", { value: index, textContent: caption })));
    select.value = chosen;
    select.setAttribute("aria-label", `${label} of the divider, ${name}`);
    return select;
  };
  const last = panels.length - 1;
  const left = chooser("left", figure.dataset.left ?? (last > 2 ? 1 : 0));
  const right = chooser("right", figure.dataset.right ?? (last > 2 ? last - 1 : last));
  const range = element("input", { type: "range", min: 0, max: 100, step: 1, value: 50 });
  range.setAttribute("aria-label", `divider between two pictures of ${name}`);
  const under = element("img", { className: "under" });
  const over = element("img", { className: "over" });
  const tags = [element("span", { className: "tag left" }), element("span", { className: "tag right" })];
  const stage = element("div", { className: "stage" }, under, over, element("span", { className: "rule" }), ...tags);

  function show() {
    [[under, left, tags[0]], [over, right, tags[1]]].forEach(([image, select, tag]) => {
      const panel = panels[select.value];
      if (image.src !== panel.image.src) {
        image.src = panel.image.src;
        image.alt = panel.image.alt;
        image.width = panel.image.width;
        image.height = panel.image.height;
      }
      tag.textContent = panel.caption;
    });
    stage.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} percent ${tags[0].textContent}, the rest ${tags[1].textContent}`);
  }
  for (const control of [range, left, right]) control.addEventListener("input", show);
  function drag(event) {
    const box = stage.getBoundingClientRect();
    range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    show();
  }
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => event.buttons && drag(event));
  const controls = element("div", { className: "controls" }, left, range, right);
  figure.querySelector(".panels").before(element("div", { className: "compare" }, stage, controls));
  show();
}

const said = element("p", { className: "hidden" });
said.setAttribute("role", "status");
document.querySelector("main").append(said);

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // a page opened from a disk may have no clipboard
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const texts = JSON.parse(button.parentElement.querySelector("script").textContent);
    const done = await copy(texts[button.dataset.copy]);
    said.textContent = done ? `copied as ${button.dataset.copy}` : "not copied: the browser does not allow it";
    button.textContent = done ? "copied" : "not allowed";
    setTimeout(() => (button.textContent = button.dataset.copy), 1500);
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
