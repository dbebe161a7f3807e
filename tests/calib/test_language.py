"""Tajik is told from its neighbours; look-alike letters are put right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soroq.calib.language import guess_language
from soroq.calib.normalize import normalize_tajik, normalize_text

PASSAGES = {
    "tg": [
        "Имрӯз дар мактаб дарси забони тоҷикӣ баргузор шуд ва хонандагон шеър хонданд.",
        "Об дар сад дараҷа меҷӯшад, аммо дар кӯҳҳои баланд ин ҳарорат камтар аст.",
        "Ман ба бозор рафтам ва аз он ҷо себу ангур харидам.",
    ],
    "ru": [
        "Сегодня в школе прошёл урок русского языка, и ученики читали стихи.",
        "Вода кипит при ста градусах, но в горах эта температура ниже.",
    ],
    "uz": [
        "Бугун мактабда она тили дарси бўлиб ўтди ва ўқувчилар шеър ўқишди.",
        "Мен бозорга бордим ва у ердан олма билан узум сотиб олдим, чунки улар керак эди.",
    ],
    "ky": [
        "Бүгүн мектепте кыргыз тили сабагы өттү жана окуучулар ыр окушту.",
        "Суу жүз градуста кайнайт, бирок бийик тоолордо бул көрсөткүч азыраак.",
        "Алар кечинде шаарга барып, базардан алма менен нан алышты.",
    ],
    "kk": [
        "Бүгін мектепте қазақ тілі сабағы өтті және оқушылар өлең оқыды.",
        "Мен базарға бардым және сол жерден алма мен жүзім сатып алдым.",
    ],
    "fa": ["امروز در مدرسه درس زبان فارسی برگزار شد و دانش‌آموزان شعر خواندند."],
    "en": ["Today there was a lesson at the school and the pupils read a poem to the class."],
    "latin": ["Imrūz dar maktab darsi zaboni tojikī barguzor shud va xonandagon she'r xondand."],
}


@pytest.mark.parametrize(
    ("language", "text"), [(code, text) for code, texts in PASSAGES.items() for text in texts]
)
def test_language_of_a_passage(language: str, text: str) -> None:
    assert guess_language(text).language == language


def test_too_little_text_is_unknown() -> None:
    assert guess_language("12 + 3 = 15").language == "unknown"


def test_latin_letters_inside_tajik_words_are_replaced() -> None:
    assert normalize_tajik("забoни тоҷикӣ, xона") == "забони тоҷикӣ, хона"


def test_words_in_latin_and_mixed_names_stay() -> None:
    assert normalize_tajik("Wi-Fi ва Python, MP3-плеер") == "Wi-Fi ва Python, MP3-плеер"


def test_old_font_letters_and_combining_macrons_become_tajik_letters() -> None:
    assert normalize_tajik("љумњурї, ќонун, ўњдадор, ѓалаба") == "ҷумҳурӣ, қонун, ӯҳдадор, ғалаба"
    assert normalize_tajik("тоҷики\u0304, ру\u0304з") == "тоҷикӣ, рӯз"


def test_white_space_and_invisible_characters_are_cleaned() -> None:
    assert normalize_text("a\u200b  b\r\n\r\n\r\n\r\nc \u00a0d ") == "a b\n\nc d"


@given(st.text())
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    once = normalize_tajik(text)
    assert normalize_tajik(once) == once
