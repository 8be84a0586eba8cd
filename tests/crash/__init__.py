"""The storm: a real broker killed, cut from its power and given a failing disk under load, and what checks its promises."""
