// Moves the edge between the float sheet and the quantized sheet. Without script the edge stays in the middle.
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
