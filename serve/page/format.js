// Numbers as people read them.

/** 75.4 -> "1:15", 3725 -> "1:02:05". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** 1, "clip" -> "1 clip"; 1200, "clip" -> "1,200 clips". */
export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** 3.14159 -> "3.1", 12 -> "12". */
export const short = (number) => String(Number(number.toFixed(1)));

/** 52428800 -> "52 MB". */
export const megabytes = (bytes) => `${Math.max(1, Math.round(bytes / 1e6)).toLocaleString("en")} MB`;
