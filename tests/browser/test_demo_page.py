"""The page of `hf-tfenc demo` in a browser, as a reader uses it: `make test-browser`."""

import pytest

pytestmark = pytest.mark.browser


def settled(page):
    """Wait for all that is asked."""
    page.wait_for_selector("main[aria-busy=false]")


def ask(page, text):
    page.fill("#text", text)
    page.click("#ask")
    settled(page)


def labels(page):
    return page.locator(".bars .label").all_inner_texts()


def picture(page, name="map"):
    return page.evaluate(f"document.getElementById('{name}').toDataURL()")


def select(page, name, index):
    page.select_option(f"#{name}", index=index)
    settled(page)


def check(page, name):
    page.click(f"#{name}")
    settled(page)


def cell(page, query, key):
    """What is read out at a cell of the map, reached by the arrow keys."""
    page.focus("#map")
    for name, count in (("ArrowUp", 40), ("ArrowLeft", 40), ("ArrowDown", query), ("ArrowRight", key)):
        for _ in range(count):
            page.keyboard.press(name)
    return page.inner_text("#readout")


def test_a_mask_is_filled_in(page):
    ask(page, " the cat watches a red [MASK].")
    assert labels(page)[0] == "·house" and len(labels(page)) == 8
    values = [float(value) for value in page.locator(".bars .value").all_inner_texts()]
    assert values[0] > 0.5 and values == sorted(values, reverse=True)
    widths = [box["width"] for box in (bar.bounding_box() for bar in page.locator(".bar").all())]
    track = page.locator(".track").first.bounding_box()["width"]
    assert widths[0] == pytest.approx(values[0] * track, abs=2)
    assert page.locator("#tokens li").all_inner_texts()[:3] == ["[CLS]", "·the", "·cat"]


def test_a_mask_is_inserted_where_one_writes(page):
    page.fill("#text", " the cat ")
    page.click("#insert")
    page.keyboard.press("Enter")
    settled(page)
    assert page.input_value("#text") == " the cat [MASK]" and page.locator("#tokens li").count() == 5


def test_the_map_is_another_for_another_head_and_layer(page):
    first = picture(page)
    select(page, "head", 1)
    second = picture(page)
    select(page, "layer", 1)
    third = picture(page)
    assert len({first, second, third}) == 3
    select(page, "layer", 0)
    select(page, "head", 0)
    assert picture(page) == first


def test_weights_are_read_out(page):
    ask(page, " the cat [MASK]")
    box = page.locator("#map").bounding_box()
    page.hover("#map", position={"x": box["width"] - 3, "y": box["height"] - 3})
    assert page.inner_text("#readout").startswith("[SEP] (4) looks at [SEP] (4): 0.")
    row = [float(cell(page, 1, key).rpartition(" ")[2]) for key in range(5)]
    assert sum(row) == pytest.approx(1, abs=1e-3)


def test_masks_change_the_map(page):
    ask(page, " the cat [MASK]")
    seen = cell(page, 1, 3)
    assert "hidden" not in seen
    check(page, "look-ahead")
    assert cell(page, 1, 3) == "·the (1) looks at [MASK] (3): hidden by a mask"
    check(page, "look-ahead")
    select(page, "window", 2)
    assert cell(page, 1, 3).endswith("hidden by a mask") and cell(page, 1, 2) != seen
    select(page, "window", 0)
    check(page, "padding")
    assert page.locator("#tokens li").count() == 9 and cell(page, 1, 6).endswith("[PAD] (6): hidden by a mask")
    check(page, "hide-padding")
    assert "hidden" not in cell(page, 1, 6)
    check(page, "padding")
    assert cell(page, 1, 3) == seen


def test_positions_are_drawn(page):
    assert "turned by an angle" in page.inner_text("#positions-text")
    first = picture(page, "positions")
    select(page, "layer", 1)
    assert picture(page, "positions") != first
    page.hover("#positions", position={"x": 1, "y": 1})
    assert page.inner_text("#positions-readout") == "position 0, feature 0: 1.000"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The text is empty: write something."),
        ("x" * 50_000, "The text has 50,000 characters, and this page takes 10,000: shorten it."),
        ("the cat", "The text holds no [MASK]: write it where a token is missing."),
        ("the cat " * 100 + "[MASK]", "tokens, and this model reads 64: shorten it."),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(page, text, sentence):
    ask(page, text)
    assert page.inner_text("#problem").endswith(sentence) and labels(page) == []
    assert page.inner_text("#look-problem") == ""  # not twice
    ask(page, "the [MASK]")
    assert page.inner_text("#problem") == "" and len(labels(page)) == 8


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script><i>"


def test_markup_in_a_question_is_text(page):
    ask(page, f"{HOSTILE} [MASK]")
    assert len(labels(page)) == 8
    assert "".join(page.locator("#tokens li").all_inner_texts()).startswith("[CLS]<img·src=x")
    assert page.locator("img, i").count() == 0


def test_markup_in_an_answer_is_text(page):
    """In whatever part of one: labels are words of somebody's file, too."""
    parts = [
        {"kind": "bars", "title": HOSTILE, "bars": [{"label": HOSTILE, "value": 0.5}]},
        {"kind": "text", "given": HOSTILE, "text": HOSTILE},
        {"kind": "spans", "spans": [{"word": HOSTILE, "tag": HOSTILE, "chance": 0.5}]},
    ]
    seen = {"ids": [1], "tokens": [HOSTILE], "special": [False], "weights": [[1.0]], "seen": [[1]]}
    page.route("**/answer", lambda route: route.fulfill(json={"parts": parts}))
    page.route("**/look", lambda route: route.fulfill(json=seen))
    page.route("**/positions", lambda route: route.fulfill(json={"text": HOSTILE, "table": None}))
    ask(page, "the [MASK]")
    select(page, "layer", 1)
    assert HOSTILE in cell(page, 0, 0).replace("·", " ")
    assert page.inner_text("#answer").count(HOSTILE) == 6 and page.inner_text("#positions-text") == HOSTILE
    page.unroute("**/answer")
    page.route("**/answer", lambda route: route.fulfill(status=422, json={"error": HOSTILE}))
    ask(page, "the [MASK]")
    assert page.inner_text("#problem") == HOSTILE
    assert page.locator("img, i, main script").count() == 0


@pytest.mark.parametrize(
    "text", ["שלום [MASK] עולם", "مرحبا [MASK]", "e\u0301\u0323\u0308 [MASK]", "\u202eabc [MASK]"]
)
def test_other_scripts_keep_the_page_in_order(page, text):
    ask(page, text)
    assert len(labels(page)) == 8 and page.inner_text("#problem") == ""
    places = [item.bounding_box() for item in page.locator("#tokens li").all()]
    rows = [(place["y"], place["x"]) for place in places]
    assert rows == sorted(rows)  # tokens stand in their order, whatever their direction


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_in_light_and_dark(page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    ask(page, "the old fox never forgets the last [MASK]. " * 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")


def test_a_program_that_has_ended_is_said_to_have(page):
    for path in ("answer", "look", "positions"):
        page.route(f"**/{path}", lambda route: route.abort())
    ask(page, "the [MASK]")
    sentence = "The program behind this page has stopped: start hf-tfenc demo again."
    assert page.inner_text("#problem") == sentence and not page.is_visible("#inside")
