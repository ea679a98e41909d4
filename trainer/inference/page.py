"""The page of `duoflow serve`: one file without anything from elsewhere."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>DuoFlow</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #18181c }
#drop { display: block; border: 2px dashed #8a8a94; border-radius: 8px; padding: 1.5rem; text-align: center }
#drop.over { background: #eef3ff } #drop img { max-width: 100%; max-height: 16rem; display: block; margin: 0 auto }
form { display: flex; gap: .5rem; margin: 1rem 0 } input[type=text] { flex: 1; font: inherit; padding: .5rem }
button { font: inherit; padding: .5rem 1.2rem } #answer { font-size: 1.5rem; min-height: 2rem }
#notes { color: #8a5a00 } #fault { color: #b00020 } #looked { max-width: 100% }
</style></head><body>
<h1>Ask about a photo</h1>
<label id="drop">Drop an image here, or choose one <input id="file" type="file" accept="image/*"><img id="photo" alt="">
</label>
<form id="ask"><input id="question" type="text" placeholder="What color is it?" aria-label="question" required>
<button>Ask</button></form>
<p id="answer" aria-live="polite"></p><p id="notes"></p><p id="fault" role="alert"></p>
<img id="looked" alt="where the model looked" hidden>
<script>
const get = id => document.getElementById(id);
let photo = null;
function take(file) { photo = file; get("photo").src = URL.createObjectURL(file); }
get("file").onchange = event => event.target.files[0] && take(event.target.files[0]);
for (const kind of ["dragover", "dragleave", "drop"]) get("drop").addEventListener(kind, event => {
  event.preventDefault();
  get("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
get("ask").onsubmit = async event => {
  event.preventDefault();
  for (const id of ["answer", "notes", "fault"]) get(id).textContent = "";
  get("looked").hidden = true;
  if (!photo) { get("fault").textContent = "Choose a photo first."; return; }
  get("answer").textContent = "...";
  try {
    const asked = "answer?question=" + encodeURIComponent(get("question").value);
    const found = await (await fetch(asked, { method: "POST", body: photo })).json();
    get("answer").textContent = "";
    if (found.error) { get("fault").textContent = found.error; return; }
    get("answer").textContent = found.answer + "  (" + (100 * found.probability).toFixed(1) + " %)";
    get("notes").textContent = found.notes.join("; ");
    if (found.overlay) { get("looked").src = found.overlay; get("looked").hidden = false; }
  } catch (fault) { get("answer").textContent = ""; get("fault").textContent = "The server does not answer."; }
};
</script></body></html>
"""
