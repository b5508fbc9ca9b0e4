"""A thousand strings that tokenizers of different make could see differently."""

from __future__ import annotations

import random

COUNT = 1000

# Inclusive ranges of code points.
SCRIPTS = {
    "latin": [(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF)],
    "turkish": [(0x130, 0x131), (0x49, 0x49), (0x69, 0x69), (0x307, 0x307)],
    "ligatures": [(0xFB00, 0xFB06), (0xDF, 0xDF), (0x1E9E, 0x1E9E), (0x1C4, 0x1CC), (0x132, 0x133)],
    "greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
    "cyrillic": [(0x400, 0x52F), (0x1C80, 0x1C88)],
    "hebrew and arabic": [(0x590, 0x5FF), (0x600, 0x6FF), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFC)],
    "indic": [(0x900, 0xDFF)],
    "thai and tibetan": [(0xE00, 0xFFF)],
    "hangul": [(0xAC00, 0xD7A3), (0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xD7B0, 0xD7FF)],
    "kana": [(0x3000, 0x30FF), (0x31F0, 0x31FF), (0xFF61, 0xFF9F)],
    "ideographs": [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x323AF), (0x2F00, 0x2FDF)],
    "marks": [(0x61, 0x65), (0x300, 0x36F), (0x483, 0x489), (0x20D0, 0x20F0), (0x302A, 0x302F), (0x1D165, 0x1D172)],
    "digits": [
        (0x30, 0x39),
        (0x660, 0x669),
        (0xB2, 0xB3),
        (0xBC, 0xBE),
        (0x2150, 0x218B),
        (0x2460, 0x249B),
        (0x1D7CE, 0x1D7FF),
    ],
    "symbols": [(0x2000, 0x2BFF), (0x21, 0x40), (0x5B, 0x60), (0x7B, 0xBF), (0xFE30, 0xFE6B), (0xFF01, 0xFFEE)],
    "white space": [
        (0x9, 0xD),
        (0x20, 0x20),
        (0x85, 0x85),
        (0xA0, 0xA0),
        (0x1680, 0x1680),
        (0x2000, 0x200F),
        (0x2028, 0x202F),
        (0x205F, 0x2064),
        (0x3000, 0x3000),
        (0x61, 0x63),
    ],
    "controls": [
        (0x1, 0x1F),
        (0x7F, 0x9F),
        (0xAD, 0xAD),
        (0xFEFF, 0xFEFF),
        (0xFFF9, 0xFFFD),
        (0xE000, 0xE010),
        (0xF8FF, 0xF900),
        (0xE0001, 0xE007F),
        (0x61, 0x63),
    ],
    "emoji": [(0x1F300, 0x1FAFF), (0x200D, 0x200D), (0xFE0F, 0xFE0F), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF)],
    "mathematics": [(0x1D400, 0x1D7FF), (0x2100, 0x214F)],
    "historic": [(0x10000, 0x10FFF), (0x11000, 0x11FFF), (0x12000, 0x12FFF), (0x13000, 0x13FFF), (0x16A00, 0x16FFF)],
    "anything": [(0x1, 0xD7FF), (0xE000, 0x10FFFF)],
    "new": [(0x1DF00, 0x1DFFF), (0x1E000, 0x1EEFF), (0x31350, 0x323AF), (0x2E80, 0x2EFF), (0x10D00, 0x10EFF)],
}
PLAIN = [
    *("A", "the", "dog's", "cat", "don't", "barks,", "runs", "&", "sleeps:", "it's", "3.5", "km/h"),
    *("(well-known)", "café", "naïve", "İstanbul", "STRASSE", "e\u0301tude"),
]
WHOLE = [
    *("", " ", "\t\n", "'", "''s", "_", "__init__", "a'b'c", "don\u2019t", "I'M'LL'D 'S'T"),
    *(
        "[CLS] a [SEP] b [PAD][MASK]",
        "[UNK]",
        "[ SEP ]",
        "[sep]",
        "##ing",
        "a[SEP]b[SEP",
        "<|startoftext|> a <|endoftext|>",
    ),
    *("👩‍👩‍👧‍👦 family", "👍🏽🇩🇪🇫🇷", "❤️‍🔥", "1️⃣ 2️⃣", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘"),
    *(
        "一二三 four 五",
        "한국어 텍스트",
        "ᄒ\u1161\u11ab",
        "日本語のテキスト",
        "ＦＵＬＬ ｗｉｄｔｈ",
        "مرحبا بالعالم",
        "שלום",
        "ก็ดี",
        "नमस्ते",
    ),
    *(
        "ǅ ǆ Ǆ",
        "ﬁne ﬀ",
        "ΑΣ ΌΔΟΣ Σ",
        "ĳ Ĳ",
        "K Å Ω",
        "\u212b\u2126\u212a",
        "a\u0323\u0307 a\u0307\u0323",
        "\u302e\U00016ff0a",
    ),
    *(
        "a" * 99,
        "a" * 100,
        "a" * 101,
        "é" * 100,
        "é" * 101,
        "a" * 20_000,
        "dog " * 5_000,
        "視" * 3_000,
        "don't" * 2_000,
    ),
    *("x" + "\u0301" * 1_000, "🐕" * 1_000, "a\u200bb", "a\u00adb", "\ufeffdog", "dog\ufffd", "\U0010ffff", "\u0378 a"),
]


def odd_strings(seed: int = 0) -> list[str]:
    """The strings: known trouble first, then random ones of every script and of several mixed."""
    chance = random.Random(seed)
    strings = list(WHOLE)
    names = list(SCRIPTS)
    while len(strings) < COUNT:
        ranges = SCRIPTS[names[len(strings) % len(names)]]
        if chance.random() < 0.3:
            ranges = ranges + SCRIPTS[chance.choice(names)]
        words = []
        for _ in range(chance.randint(1, 12)):
            if chance.random() < 0.3:
                words.append(chance.choice(PLAIN))
            else:
                letters = [chr(chance.randint(*chance.choice(ranges))) for _ in range(chance.randint(1, 8))]
                words.append("".join(letters))
        strings.append(chance.choice(["", " ", " ", " ", "-"]).join(words))
    return strings
