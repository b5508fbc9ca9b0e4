// Searching by sound from the microphone.

import { clock } from "./format.js";

const button = document.getElementById("microphone");
const bar = document.getElementById("recorder");
const LONGEST = 15; // seconds, then what was heard is searched with
const KINDS = [["audio/webm", "webm"], ["audio/mp4", "m4a"], ["audio/ogg", "ogg"]];

let recording = null; // { recorder, stream, context, timer }
let starting = false; // the browser is asked for the microphone, and may be asking the user

/** Call `use(file)` with a recording, `refuse(title, text)` if there can be none. */
export function onRecording(use, refuse) {
  button.addEventListener("click", () => {
    if (recording) finish();
    else if (!starting) begin(use, refuse);
  });
  document.getElementById("record-search").addEventListener("click", () => finish());
  document.getElementById("record-cancel").addEventListener("click", () => cancelRecording());
}

/** Throw away what is being recorded. Returns whether something was. */
export function cancelRecording() {
  if (!recording) return false;
  recording.recorder.onstop = null;
  finish();
  return true;
}

async function begin(use, refuse) {
  if (!navigator.mediaDevices?.getUserMedia) {
    refuse("The microphone cannot be used here", "Browsers allow it only over https or on localhost. A sound file can be dropped in instead.");
    return;
  }
  let stream;
  starting = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    if (error.name === "NotAllowedError") {
      refuse("The microphone was refused", "Allow it in the browser's settings for this site and try again, or drop in a sound file.");
    } else {
      refuse("No microphone was found", `Connect one and try again, or drop in a sound file. (${error.name})`);
    }
    return;
  } finally {
    starting = false;
  }
  const [type, suffix] = KINDS.find(([kind]) => MediaRecorder.isTypeSupported(kind)) ?? ["", "webm"];
  const recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => use(new File(parts, `recording.${suffix}`, { type: recorder.mimeType.split(";")[0] }));
  recorder.start();
  const context = new AudioContext();
  recording = { recorder, stream, context, timer: 0 };
  show(context, stream);
}

function show(context, stream) {
  bar.hidden = false;
  button.ariaPressed = "true";
  document.getElementById("record-search").focus();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const wave = new Float32Array(analyser.fftSize);
  const since = performance.now();
  recording.timer = setInterval(() => {
    const seconds = (performance.now() - since) / 1000;
    document.getElementById("recorded").textContent = clock(seconds);
    analyser.getFloatTimeDomainData(wave);
    const loudness = Math.sqrt(wave.reduce((sum, x) => sum + x * x, 0) / wave.length);
    bar.style.setProperty("--level", Math.min(1, 4 * loudness));
    if (seconds >= LONGEST) finish();
  }, 100);
}

function finish() {
  const { recorder, stream, context, timer } = recording;
  recording = null;
  clearInterval(timer);
  recorder.stop();
  for (const track of stream.getTracks()) track.stop();
  context.close();
  bar.hidden = true;
  button.ariaPressed = "false";
  button.focus(); // that of the bar goes away
}
