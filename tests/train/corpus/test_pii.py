"""What names a person is masked; years, prices, laws and long numbers stay."""

import pytest

from soroq.train.corpus.pii import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Нависед ба ali.v@maktab.tj лутфан", "Нависед ба ‹EMAIL› лутфан"),
        ("занг: +992 93 123 45 67.", "занг: ‹PHONE›."),
        ("занг: +992931234567", "занг: ‹PHONE›"),
        ("тел. 93 123 45 67", "тел. ‹PHONE›"),
        ("тел. (44) 600-12-34", "тел. ‹PHONE›"),
        ("Телефон: 918 12 34 56", "Телефон: ‹PHONE›"),
        ("тел: 931234567, факс 221-34-56", "тел: ‹PHONE›, факс ‹PHONE›"),
        ("WhatsApp +992 (93) 123-45-67", "WhatsApp ‹PHONE›"),
        ("+44 20 7946 0958", "‹PHONE›"),
        ("+7 (495) 123-45-67", "‹PHONE›"),
        ("шиноснома А12345678", "шиноснома ‹PASSPORT›"),
        ("шиносномаи рақами А № 1234567", "шиносномаи рақами ‹PASSPORT›"),
        ("паспорт серия 4509 123456", "паспорт серия ‹PASSPORT›"),
        ("РМА: 510012345", "РМА: ‹TAX›"),
        ("ИНН 123456789012", "ИНН ‹TAX›"),
        ("РМА (INN): 510012345", "РМА (INN): ‹TAX›"),
        ("рақами мушаххаси андозсупоранда: 510012345", "рақами мушаххаси андозсупоранда: ‹TAX›"),
    ],
)
def test_what_names_a_person_is_masked(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "солҳои 1941-1945 ва 2018–2022",
        "нархаш 12 500 000 сомонӣ",
        "Қонуни № 1234 аз 22.07.2013",
        "аҳолӣ 10 143 543 нафар",
        "3.14159265358979",
        "ISBN 978-99947-1-234-5",
        "соати 10:30-12:45",
        "масоҳат 143 100 км²",
        "рақами 123456789",
        "+10 000 000 нафар",
        "афзоиш +12 345 678 901 сомонӣ",
        "гармо +25 30 35 40 45 дараҷа",
        "В 20000000 случаев",
        "+7 499\n123456789",
        "телефон дар солҳои 1941-1945",
        "телефон 1941-1945",
        "телефон 1 250 000 сомонӣ",
        "тел. 112",
        "паспорт аз соли 2014",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert mask(text)[0] == text


def test_counts_are_of_what_was_masked() -> None:
    text, counts = mask("a@b.tj, c@d.tj, +992 93 123 45 67")
    assert text == "‹EMAIL›, ‹EMAIL›, ‹PHONE›"
    assert counts == {"EMAIL": 2, "PHONE": 1}
