"""Texts that a tokenizer can get wrong, made from a fixed seed: `samples()` gives (kind, text)."""

import random
import unicodedata

WORDS = {
    "english": "the model reads every word twice before it answers because nobody's memory is perfect and we're don't I'll they've could've shouldn't O'Brien's well-known state-of-the-art e.g. Mr. U.S.A. naïve café résumé coöperate",
    "german": "Straße Übergrößenträger heißt zwölf Boxkämpfer jagen Donaudampfschifffahrtsgesellschaft während gemütlich Füße Köln ẞ außerdem",
    "french": "où l'été dernier qu'il n'avait çà et là des œufs aujourd'hui être déjà vu naïveté garçon forêt «bonjour» – voilà !",
    "spanish": "¿dónde está el niño? ¡mañana! corazón pingüino acción después año también jamás",
    "portuguese": "não coração você está lá amanhã pão avô avó três ônibus também ação",
    "italian": "perché è così più città l'università però già dell'amico caffè",
    "polish": "zażółć gęślą jaźń chrząszcz brzmi w trzcinie źdźbło łódź",
    "czech": "příliš žluťoučký kůň úpěl ďábelské ódy řeřicha",
    "hungarian": "árvíztűrő tükörfúrógép őszinte gyönyörű",
    "turkish": "İstanbul'da ılık şeftali çağrı ğ öğüt IĞDIR ıslak",
    "vietnamese": "tiếng Việt được viết bằng chữ Quốc ngữ với nhiều dấu thanh: ngã, nặng, hỏi",
    "finnish": "hyvää päivää äiti yö työ lämpötila",
    "icelandic": "það þú hæð sjálfstæði Þórður ævi",
    "russian": "съешь ещё этих мягких французских булок да выпей чаю ёлка подъезд",
    "ukrainian": "їжак ґанок є і п'ять об'їзд щастя",
    "greek": "ξεσκεπάζω την ψυχοφθόρα βδελυγμία Ἀθῆναι σοφός ΐ ΰ",
    "georgian": "საქართველო დედა ენა გამარჯობა",
    "armenian": "Հայաստան բարեւ ձեզ և շնորհակալություն",
    "hebrew": "שָׁלוֹם עולם דג סקרן שט בים מאוכזב ״ציטוט״ צה״ל",
    "arabic": "اَلْعَرَبِيَّةُ السلام عليكم لغة جميلة؟ كتاب، مدرسة",
    "persian": "می‌خواهم پارسی بنویسم ژاله گچ چای",
    "urdu": "اردو زبان ہے کیا حال ہیں ٹھیک",
    "hindi": "हिन्दी में लिखा हुआ वाक्य क्षत्रिय ज्ञान श्रीमान् कृपया",
    "bengali": "বাংলা ভাষা আমার সোনার দেশ কৃষ্ণ",
    "tamil": "தமிழ் மொழி வணக்கம் நன்றி ஸ்ரீ",
    "telugu": "తెలుగు భాష నమస్కారం క్షమించండి",
    "thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ น้ำ ผู้ใหญ่",
    "lao": "ພາສາລາວ ສະບາຍດີ",
    "khmer": "ភាសាខ្មែរ សួស្តី",
    "burmese": "မြန်မာဘာသာ မင်္ဂလာပါ",
    "tibetan": "བོད་སྐད། བཀྲ་ཤིས་བདེ་ལེགས།",
    "amharic": "አማርኛ ሰላም ነው፡፡ እንዴት",
    "korean": "한국어 문장은 띄어쓰기가 있다 안녕하세요 ㅋㅋㅋ ㅠㅠ 값",
    "japanese": "日本語の文章には漢字とひらがなとカタカナが混ざる。「東京タワー」へ行きます！ゲーム・パーティー ヴァイオリン々〆ヶ 〜",
    "chinese": "今天天气很好，我们去公园散步吧。机器学习模型需要大量数据；《红楼梦》——曹雪芹？（注）【重点】",
    "traditional": "臺灣的繁體字與簡體字不同，請問圖書館在哪裡？龜龍鬱",
    "halfwidth": "ﾊﾝｶｸ ｶﾀｶﾅ Ｆｕｌｌ　ｗｉｄｔｈ １２３ ＡＢＣ！？",
    "esperanto": "eĥoŝanĝo ĉiuĵaŭde ŭ",
    "welsh": "llanfairpwllgwyngyll ŵ ŷ",
    "hawaiian": "ʻŌlelo Hawaiʻi ʻaʻā",
    "cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "inuktitut": "ᐃᓄᒃᑎᑐᑦ",
    "rune": "ᚠᚢᚦᚨᚱᚲ",
    "gothic": "𐌲𐌿𐍄𐌹𐍃𐌺",
    "cuneiform": "𒀀𒈾𒆠",
    "mathematical": "𝐱 ∈ ℝⁿ ∀ε>0 ∃δ: ∑ᵢ xᵢ² ≤ ∫₀^∞ e^{−x} dx ≈ 1½ ⊗ ∇ ℵ₀ 𝔄𝕭𝖈",
    "ipa": "ˈfəʊˌnɛtɪk tɹænˈskɹɪpʃən̩ ɸʷ",
}  # fmt: skip

EMOJI = [
    "😀", "🙂", "🚀", "❤️", "❤", "☃", "☃️", "👍", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "👩🏾‍🚀", "🏳️‍🌈", "🏴‍☠️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🇩🇪", "🇫🇷🇯🇵", "🇺",
    "1️⃣", "#️⃣", "*️⃣", "🧑🏻‍❤️‍💋‍🧑🏿", "🫠", "🥹", "™️", "©", "㊗️", "🈁", "⏏", "➿", "🀄", "🃏", "😶‍🌫️", "🐈‍⬛", "♀️", "\u200d", "\ufe0f",
]  # fmt: skip

DIGITS = [
    "0123456789", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵۶۷۸۹", "०१२३४५६७८९", "০১২৩৪৫৬৭৮৯", "௦௧௨௩௪௫௬௭௮௯", "๐๑๒๓๔๕๖๗๘๙", "０１２３４５６７８９", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗",
    "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉", "①②③④⑤⑥⑦⑧⑨⑩", "ⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ", "½⅓¼⅕⅙⅛⅔¾⅖⅗", "〇一二三四五六七八九", "〡〢〣〤〥〦〧〨〩〸", "፩፪፫፬፭፮፯፰፱፲", "𐄇𐄈𐄉𐄊𐄋𐄌𐄍𐄎𐄏𐄐",
]  # fmt: skip

BLANKS = [" ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u2002", "\u2003", "\u2009", "\u200a",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u180e", "\u2060", "\x1c", "\x1f"]  # fmt: skip

CONTROLS = [chr(c) for c in [*range(0x20), 0x7F, *range(0x80, 0xA0)]] + [
    "\u00ad", "\u034f", "\u061c", "\u200c", "\u200d", "\u200e", "\u200f", "\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2061",
    "\u2066", "\u2067", "\u2068", "\u2069", "\ufeff", "\ufff9", "\ufffa", "\ufffb", "\ufffc", "\ufffd", "\ufffe", "\uffff", "\ufdd0",
    "\ue000", "\U000e0001", "\U000e0020", "\U000f0000", "\U0010ffff", "\ufe00", "\U000e0100",
]  # fmt: skip

MARKS = "\u0300\u0301\u0302\u0308\u030a\u0327\u0328\u0338\u0345\u035c\u0483\u0591\u05b0\u064b\u0651\u093c\u094d\u0e31\u0e48\u1ab0\u20d0\u20dd\u20e3\u3099\u309a\ufe20\U0001d165"

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
MORE_PUNCTUATION = "¡¿«»‹›“”‘’„‚–—…·•†‡§¶©®°±×÷€£¥¢₿→⇒≤≥≠∞√∂■□▲★☆♪✓✗、。，！？：；（）「」『』【】《》〈〉・〜ー～￥‰′″؟،؛।॥՞፡᠀⸮﹏﹪｡｢｣｜▁"

IDENTIFIERS = "x i n tmp foo bar baz value items node head tail self this count index buffer result parse_header readFile HTTPServer __init__ _private camelCaseName SCREAMING_CASE kebab-name x1 v2_final π Δt größe 变量 имя".split()


def edge_code_points():
    """Characters on both sides of the borders that the pre-tokenizer's classes draw."""
    borders = [0x2F, 0x3A, 0x40, 0x5B, 0x60, 0x7B, 0x7F, 0xA0, 0xAA, 0xB2, 0xB5, 0xBA, 0xC0, 0xD7, 0xF7, 0x2B9, 0x2C2, 0x300, 0x370,
               0x483, 0x660, 0x966, 0x1100, 0x2000, 0x2070, 0x20D0, 0x2150, 0x2190, 0x2460, 0x3000, 0x3005, 0x3007, 0x3021, 0x302A, 0x3030,
               0x303F, 0x3040, 0x3041, 0x3096, 0x3097, 0x3099, 0x309B, 0x309F, 0x30A0, 0x30FB, 0x30FC, 0x30FF, 0x3100, 0x3105, 0x31F0, 0x3200,
               0x3400, 0x4DBF, 0x4DC0, 0x4DFF, 0x4E00, 0x9FA5, 0x9FA6, 0x9FFC, 0xA000, 0xAC00, 0xD7A3, 0xF900, 0xFA0E, 0xFB00, 0xFE30, 0xFF01,
               0xFF10, 0xFF21, 0xFF66, 0xFF9E, 0xFFA0, 0x10000, 0x1D400, 0x1D7CE, 0x1F000, 0x1F600, 0x20000, 0x2A6D6, 0x2F800, 0x30000]  # fmt: skip
    return [chr(b + d) for b in borders for d in (-1, 0, 1)]


def assigned():
    """Every code point that Unicode 14 gives a meaning, by category; so that newer tables of some
    regex engine make no difference."""
    by_category = {}
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category not in ("Cn", "Cs"):
            by_category.setdefault(category, []).append(chr(code))
    return by_category


def code(r):
    """A few lines in one of many languages, around random names and numbers."""
    a, b, c, d = r.sample(IDENTIFIERS, 4)
    n, m = r.choice((0, 1, 7, 42, 255, 1024, 65536, 1000000, 3141592653)), r.randint(2, 99999)
    f = r.choice((0.5, 3.14159, 1e-9, 6.02e23, 100.0))
    tab = r.choice(("    ", "  ", "\t", "        "))
    return r.choice((
        f"fn {a}<'a, T: Clone + 'static>({b}: &'a mut Vec<T>) -> Result<Option<&'a T>, Box<dyn Error>> {{\n{tab}let {c} = {b}.iter().filter(|x| x.len() >= {n}_usize).map(|{d}| {d}.clone())?;\n{tab}Ok(Some({c}))\n}}\n",
        f"#[derive(Debug, Clone, PartialEq)]\npub enum {a.title()} {{ {b.title()}(u{r.choice((8, 16, 32, 64))}), {c.title()} {{ {d}: [f32; {m}] }} }}\n// TODO? no: {f}\n",
        f"def {a}({b}: list[int], *, {c}=None, **kw) -> dict[str, float]:\n{tab}\"\"\"Return {d!r}.\"\"\"\n{tab}return {{k: v ** {n} for k, v in zip({b}, range({m})) if v != {f}}}\n",
        f"@property\nasync def {a}(self):\n{tab}async with self.{b} as {c}:\n{tab}{tab}yield f\"{{{c}!r:>{n % 80}}} {{self.{d}:.3f}}\"\n",
        f"#include <{a}.h>\n#define {b.upper()}({c}) (({c}) * {n}u << {m % 32})\nint main(int argc, char **argv) {{\n{tab}printf(\"%d\\t%s\\n\", argv[{n}], {d}->next->{c});\n{tab}return 0;\n}}\n",
        f"template <typename T, size_t N = {n}>\nstd::vector<T> {a}(const T& {b}) noexcept {{ return {{{b}, static_cast<T>({f})}}; }} // {c}::{d}\n",
        f"const {a} = async ({b} = {{}}, ...{c}) => {{\n{tab}await fetch(`/api/v{n}/${{{b}?.{d} ?? '{m}'}}`);\n{tab}if ({c} === undefined || !{d}) throw new Error(\"{a}: {f}\");\n}};\r\n",
        f"func ({a} *{b.title()}) {c.title()}(ctx context.Context) (<-chan struct{{}}, error) {{\n{tab}if err := {d}(ctx, {n}); err != nil {{\n{tab}{tab}return nil, fmt.Errorf(\"%w: %d\", err, {m})\n{tab}}}\n}}\n",
        f"SELECT {a}, COUNT(*) AS n FROM \"{b}\" LEFT JOIN {c} USING (id)\nWHERE {d} IS NOT NULL AND x >= {n} -- {m}\nGROUP BY 1 HAVING n > {f} ORDER BY 2 DESC LIMIT {m};\n",
        f"{{\"{a}\": [{n}, {f}, true, null, {{\"{b}\": \"\\u00e9\\n\"}}], \"{c}\":{m},\"{d}\":[]}}\n",
        f"<div class=\"{a} {b}\" data-{c}='{n}'>\n{tab}<p>&lt;{d}&gt; &amp; &#x1F600;<br/></p>\n<!-- {m} --></div>\n",
        f".{a} > #{b}::before {{ margin: -{n}px {f}em; color: #{m % 4096:03x}; background: url('{c}.png') !important; }}\n@media (min-width:{m}px){{}}\n",
        f"#!/usr/bin/env bash\nset -euo pipefail\nfor {a} in \"${{{b}[@]:-{n}}}\"; do\n{tab}grep -rE '^[^#]+\\s{c}$' \"$({d} --n={m})\" 2>&1 | awk '{{print $1}}' >> /dev/null || exit {n % 256}\ndone\n",
        f"{a}:\n  - name: {b}\n    image: \"{c}:{f}\"\n    ports: [{n}, {m}]\n    run: |\n      echo ${{{{ {d} }}}}\n",
        f"[{a}.\"{b}\"]\n{c} = {{ version = \"{f}\", features = [\"{d}\"] }} # {n}\n",
        f"\\begin{{equation}}\\label{{eq:{a}}}\n{tab}\\frac{{\\partial {b[0]}}}{{\\partial t}} = \\sum_{{i={n}}}^{{{m}}} \\alpha_i^{{2}} \\cdot \\left( {c[0]}_i - \\overline{{{d[0]}}} \\right) \\\\\n\\end{{equation}}\n",
        f"--- a/{a}.rs\n+++ b/{a}.rs\n@@ -{n},{m} +{m},{n} @@ fn {b}()\n-{tab}{c};\n+{tab}{d};\n",
        f"{a} :: (Monad m, Show b) => [b] -> m (Maybe Int)\n{a} {b[0]} = foldr (\\{c[0]} -> (>>=) . pure . (+ {n})) mempty <$> {d} `seq` {b[0]}\n",
        f"mov\trax, qword ptr [rbp - 0x{n:x}]\nlea\trdi, [rip + .L{m}]\ncall\t{a}@PLT\t# {b}\n.{c}: .quad 0x{m:016X}\n",
        f"class {a.title()} extends {b.title()}<? super {c.title()}> implements Runnable {{\n{tab}@Override public void run() {{ System.out.println(\"{d}\" + {n}L + {f}f); }}\n}}\n",
        f"{a} <- function({b}, ...) {{ {b} |> filter(!is.na({c})) %>% mutate({d} = log1p({n})) }}\n",
        f"/^(?:[+-]?\\d{{1,{n % 20}}}(?:\\.\\d+)?|\\p{{L}}[\\w.]*|\\x{{{m:x}}})$/gim.test({a}['{b}'])\n",
        f"| {a} | {b} |\n|:---|---:|\n| `{c}` | **{n}** |\n\n1. _{d}_ [link](https://example.org/{m} \"t\")\n> quoted\n\n```rust\n{tab}{a}();\n```\n",
        f"{m:08b} 0x{m:X} 0o{m:o} {n:,} {n}e-{m % 10} {f}f64 1_000_000 {m}% ${n}.{m % 100:02} {n}/{m} {n}:{m % 60:02}:59 2024-0{n % 9 + 1}-1{m % 9}T00:00:00Z +1 (555) {m}\n",
        f"https://user:pa%20ss@{a.lower()}.example.com:{m % 65536}/{b}/{c}.html?q={d}&n={n}#frag-{m} {a}.{b}@mail.example.co.uk file:///C:/{c}/{d}.txt C:\\{a}\\{b} ~/{c}/../.{d}rc ::1 192.168.{n % 256}.{m % 256}/24\n",
    ))  # fmt: skip


def samples(seed=20260424):
    r = random.Random(seed)
    by_category = assigned()
    everything = [c for cs in by_category.values() for c in cs]
    out = []

    def add(kind, text):
        if text:
            out.append((kind, text))

    def run(pool, low, high):
        return "".join(r.choice(pool) for _ in range(r.randint(low, high)))

    for words in WORDS.values():
        add("prose", words)
        words = words.split()
        for _ in range(7):
            line = [r.choice((str.lower, str.upper, str.title, str, str, str))(r.choice(words)) for _ in range(r.randint(1, 9))]
            add("prose", r.choice((" ", " ", " ", "  ", "-", ", ", "")).join(line) + r.choice(("", ".", "!\n", "?!", "…", ":\n\n", " ")))
    for _ in range(60):
        picked = [r.choice(r.choice(list(WORDS.values())).split()) for _ in range(r.randint(2, 7))]
        add("mixed languages", r.choice(("", " ", "\n", "/", " — ")).join(picked))
    for _ in range(260):
        add("code", "".join(code(r) for _ in range(r.randint(1, 2))))
    for _ in range(90):
        pools = r.sample(DIGITS, r.randint(1, 2))
        add("digits", r.choice(("", " ", ".", ",", "a", "年", "-")).join(run(r.choice(pools), 1, 9) for _ in range(r.randint(1, 5))))
    for length in range(1, 21):
        add("digits", ("9876543210" * 2)[:length])
        add("white space", " " * length)
        add("white space", " " * length + "x")
        add("white space", "x" + " " * length + "\n" + "\t" * length + "y\n" * (length % 4))
        add("white space", "\n" * length + ("z" if length % 2 else ""))
        add("white space", "a\r\n" * (length % 5) + "\r\n" * length)
    for _ in range(150):
        add("white space", run(BLANKS, 1, 6) + r.choice(("", "a", "é", "中", "!", "1", "\u0301")) + run(BLANKS, 0, 4) + r.choice(("", "b", ".", "ひ")))
    for blank in BLANKS:
        add("white space", f"a{blank}b{blank}{blank}c {blank} d{blank}")
    for _ in range(90):
        add("emoji", r.choice(("", " ", "a", "1", ".")).join(r.choice(EMOJI) for _ in range(r.randint(1, 6))))
    for e in EMOJI:
        add("emoji", f"{e}{e} x{e}y {e}\n")
    for _ in range(90):
        word = r.choice(r.choice(list(WORDS.values())).split())
        form = unicodedata.normalize(r.choice(("NFC", "NFD", "NFKD", "NFKC")), word)
        add("marks", run(MARKS, 0, 2) + "".join(c + run(MARKS, 0, r.choice((0, 0, 1, 4))) for c in form))
    for mark in MARKS:
        add("marks", f"{mark} e{mark} 1{mark}!{mark}\n{mark}中{mark}")
    for control in CONTROLS:
        add("control", f"{control}a {control}b{control}{control}1{control}.\n")
    for _ in range(50):
        add("control", run(CONTROLS, 1, 5) + run("aé中1. \n", 0, 3) + run(CONTROLS, 0, 3))
    for _ in range(130):
        add("punctuation", run(PUNCTUATION, 1, 8) + run("abcXYZ", 0, 3) + run(PUNCTUATION + " \n\r", 0, 6))
        add("punctuation", run(MORE_PUNCTUATION + " ", 1, 6) + run("aжカ", 0, 2) + run(PUNCTUATION + MORE_PUNCTUATION + "\n", 0, 6))
    for p in PUNCTUATION:
        add("punctuation", f"{p}a {p}A{p}é{p}1 {p} {p}{p}\n{p}\r\n\r\nx{p}日{p}\n\n {p}_{p}z")
    add("punctuation", "=" * 80 + "\n" + "-" * 79 + "\n" + "*" * 33 + "/\n" + "." * 100 + "#" * 17 + "~" * 6)
    edges = edge_code_points()
    for c in edges:
        if unicodedata.category(c) != "Cs":
            add("edges", f"{c}a{c}{c}1{c}中{c} {c}.{c}\n")
    for pool in by_category.values():
        for _ in range(12):
            add("by category", r.choice(("", " ", "a", ".", "1")) + run(pool, 1, 5) + r.choice(("", "a", " ", "\n", "!")))
    for _ in range(160):
        add("random", run(everything, 1, 8))
        start = ord(r.choice(everything))
        block = [chr(c) for c in range(start & ~0x7F, (start & ~0x7F) + 0x80) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
        add("random", r.choice(("", " ")).join(run(block, 1, 6) for _ in range(r.randint(1, 4))))
    for _ in range(60):
        add("random", "".join(chr(r.randint(0x20, 0x7E)) for _ in range(r.randint(1, 60))))
    for _ in range(40):
        add("random", run(["a", "b", " ", "\n", "é", "中", "か", "1", "٣", "!", "—", "\u0301", "\t", "🙂", "\r\n", "'", "ﬁ"], 10, 60))
    add("long", "a" * 500)
    add("long", "中" * 200 + "文" * 77)
    add("long", "1" * 400)
    add("long", "ab" * 300 + " " + "xyz" * 150)
    add("long", "🙂" * 90)
    add("long", "e" + "\u0301" * 120)
    return list(dict.fromkeys(out))


if __name__ == "__main__":
    made = samples()
    lines = sum(max(1, len(t.splitlines())) for _, t in made)
    print(f"{len(made)} samples, {lines} lines, {sum(len(t.encode()) for _, t in made)} bytes")
