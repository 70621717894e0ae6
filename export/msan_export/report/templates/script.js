"use strict";
// The picture slider: two versions on either side of a line that pointer, keyboard and choice move.
for (const viewer of document.querySelectorAll("[data-viewer]")) {
  const stage = viewer.querySelector(".stage");
  const frame = viewer.querySelector(".window");
  const range = viewer.querySelector("input[type=range]");
  const choices = [...viewer.querySelectorAll("[data-choice]")];
  const zoom = viewer.querySelector("[data-zoom]");
  const nameOf = (choice) => choice.selectedOptions[0].textContent;

  const place = () => {
    const [left, right] = choices.map(nameOf);
    stage.style.setProperty("--split", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${left}, ${100 - range.value} % ${right}`);
  };

  const choose = () => {
    for (const choice of choices) {
      const side = choice.dataset.choice;
      viewer.querySelector(`.label.${side}`).textContent = nameOf(choice);
      for (const layer of stage.querySelectorAll(".layer")) {
        layer.classList.toggle(`on-${side}`, layer.dataset.key === choice.value);
      }
    }
    place();
  };

  const enlarge = () => {
    stage.style.setProperty("--zoom", zoom.value);
    stage.classList.toggle("enlarged", zoom.value !== "1");
    frame.scrollTop = (stage.offsetHeight * viewer.dataset.row) / 100 - frame.clientHeight / 2;
    frame.scrollLeft = (stage.offsetWidth * viewer.dataset.column) / 100 - frame.clientWidth / 2;
    // The line comes along into view.
    range.value = (100 * (frame.scrollLeft + frame.clientWidth / 2)) / stage.offsetWidth;
    place();
  };

  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = (100 * (event.clientX - box.left)) / box.width;
    place();
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button === 0) {
      stage.setPointerCapture(event.pointerId);
      drag(event);
    }
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  range.addEventListener("input", place);
  zoom.addEventListener("change", enlarge);
  for (const choice of choices) choice.addEventListener("change", choose);
  viewer.querySelector(".controls").hidden = false;
  choose();
}
