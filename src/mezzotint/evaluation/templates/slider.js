// Moves the edge between two sheets, and puts the chosen ones there. Without script the edge stays in the middle.
for (const input of document.querySelectorAll("input[data-slides]")) {
  const sheet = document.getElementById(input.dataset.slides);
  const move = () => sheet.style.setProperty("--cut", input.value + "%");
  input.addEventListener("input", move);
  sheet.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && event.buttons !== 1) return;
    const box = sheet.getBoundingClientRect();
    input.value = Math.round(((event.clientX - box.left) / box.width) * 100);
    move();
  });
  move();
}
for (const select of document.querySelectorAll("select[data-fills]")) {
  const image = document.getElementById(select.dataset.fills);
  const fill = () => {
    const chosen = document.getElementById(select.value);
    image.src = chosen.src;
    image.alt = chosen.alt;
  };
  select.addEventListener("change", fill);
  fill();
}
