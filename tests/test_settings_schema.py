"""The parser of declared settings, used for the broker and the device. Here the settings are those of a lamp."""

import re

import pytest

from blipmq.config.schema import Schema, Section, key, section, tables
from blipmq.config.schema_reader import Lines, Reading, Source, parse_toml


def check_colour(text):
    if not re.fullmatch("#[0-9a-f]{6}", text):
        raise ValueError('expected a colour such as "#00ff7f"')


class Bulb(Section):
    name: str = key("", "Its name.")
    watts: int = key(5, "What it takes.", "W", 1, 100)
    pin: str = key("", "Its secret.", check=check_colour, secret=True)


class Light(Section):
    on: bool = key(True, "Whether it shines.")
    colours: tuple[str, ...] = key((), "In turn.", high=2, check=check_colour)
    mode: str = key("steady", "How it shines.", choices=("steady", "blinking"), reason=": others hurt the eyes")


class Lamp(Section):
    height: int = key(10, "Above the floor.", "cm", -5, 300)
    light: Light = section(Light)
    bulbs: tuple[Bulb, ...] = tables(Bulb, most=2)


SCHEMA = Schema(Lamp)


def read(text, reading=None):
    reading = reading or Reading(SCHEMA)
    reading.take_table(parse_toml(text, "lamp.toml"), Source("lamp.toml", Lines(text)))
    return reading


def test_each_kind_of_value_has_its_origin_and_missing_values_are_defaults():
    text = 'height = -5\n[light]\ncolours = ["#000000"]\n[[bulbs]]\nname = "a"\n[[bulbs]]\nwatts = 100\n'
    reading = read(text)
    assert reading.problems == []
    lamp = reading.build()
    assert lamp == Lamp(
        height=-5, light=Light(colours=("#000000",)), bulbs=(Bulb(name="a"), Bulb(watts=100))
    ) and lamp != Lamp(height=-5)
    assert reading.origins["light.colours"] == "lamp.toml:3" and reading.origins["bulbs"] == "lamp.toml:4"


def test_a_later_file_overrides_earlier_ones_key_by_key():
    reading = read("[light]\non = false\n", read('height = 3\n[light]\nmode = "blinking"\n'))
    assert reading.build() == Lamp(height=3, light=Light(on=False, mode="blinking"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("height = 301", "1: height: 301 is not a whole number from -5 to 300 (cm)"),
        ("height = true", "1: height: true is not a whole number from -5 to 300 (cm)"),
        ("heigth = 3", "1: there is no setting heigth; did you mean height?"),
        ("[light]\nwatts = 3", "2: there is no setting light.watts; did you mean bulbs.watts?"),
        ("[ligth]\non = true", "1: there is no section [ligth]; did you mean [light]?"),
        ("[bulb]", "1: there is no section [bulb]; did you mean [bulbs]?"),
        ("light = 3", "1: light is a section, not a setting; write [light] on a line of its own"),
        ("[light]\non = 1", "2: light.on: 1 is not true or false"),
        ("[light]\ncolours = [1]", '2: light.colours: [1] is not a list of strings, 2 at most: ["one", "another"]'),
        ('[light]\ncolours = ["", "#0"]', "2: light.colours: an entry is empty; remove it"),
        ('[light]\ncolours = ["#0"]', "2: light.colours: '#0': expected a colour such as \"#00ff7f\""),
        ('[light]\ncolours = ["a", "b", "c"]', "2: light.colours: 3 entries; the maximum is 2"),
        (
            '[light]\nmode = "blink"',
            '2: light.mode: \'blink\' is not one of "steady", "blinking": others hurt the eyes; did you mean blinking?',
        ),
        ("[bulbs]\nwatts = 1", "1: bulbs is a list of tables; write [[bulbs]] on a line of its own, once for each"),
        ("[[bulbs]]\n" * 3, "1: 3 bulbs; the maximum is 2"),
        ("[[bulbs]]\n[[bulbs]]\nwatts = 0", "3: bulbs.watts: 0 is not a whole number from 1 to 100 (W)"),
        ('[[bulbs]]\npin = "1234"', '2: bulbs.pin: expected a colour such as "#00ff7f"'),
        ("[[bulbs]]\npin = 1234", "2: bulbs.pin: the value is not a string"),
    ],
)
def test_an_invalid_value_is_reported_with_its_line_and_valid_values(text, problem):
    assert read(text).problems == [f"lamp.toml:{problem}"]


def test_all_problems_are_collected_and_valid_values_are_applied():
    reading = read("height = 7\n[light]\non = 1\nmode = 2\n")
    assert [problem.split(":")[1] for problem in reading.problems] == ["3", "4"]
    assert reading.build() == Lamp(height=7)
