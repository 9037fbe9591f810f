"""Weaves mutants into a source file: each is there, and the one whose number the variable MUTANT names is in force.

What is broken, where and by what comes from `cargo mutants --list --json`. A place becomes a choice between what stands
there and what cargo-mutants would have put in its stead:

    a < b      (match crate::mutant::number() { 7 => { a <= b } 8 => { a > b } _ => { a < b } })

A body is left early, and an arm that is deleted has a guard that never lets anything in.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import tree_sitter_rust
from tree_sitter import Language, Node, Parser

CHOICE = """//! Which mutant is in force.
use std::sync::LazyLock;

static NUMBER: LazyLock<u32> =
    LazyLock::new(|| std::env::var("MUTANT").ok().and_then(|number| number.parse().ok()).unwrap_or(0));

#[inline]
pub fn number() -> u32 {
    *NUMBER
}
"""
CONST_FN = b"const fn "
PLAIN_FN = b"      fn "
PARSER = Parser(Language(tree_sitter_rust.language()))
HOSTS = {
    "BinaryOperator": ("binary_expression", "compound_assignment_expr"),
    "UnaryOperator": ("unary_expression",),
    "StructField": ("struct_expression",),
}
Place = tuple[int, int]


@dataclass
class Woven:
    text: bytes
    # Where the text is of one mutant alone: begin, end, number.
    places: list[tuple[int, int, int]] = field(default_factory=list)
    # Numbers of those for which there was no place.
    left: set[int] = field(default_factory=set)


class Weaver:
    def __init__(self, source: bytes) -> None:
        self.source = source
        self.root = PARSER.parse(source).root_node
        self.lines = source.decode().split("\n")
        self.begins = [0]
        for line in self.lines:
            self.begins.append(self.begins[-1] + len(line.encode()) + 1)
        # By the place of an expression: numbers, and what each has in its stead.
        self.choices: dict[Place, list[tuple[int, bytes]]] = defaultdict(list)
        # By a place: numbers, and what each has there in addition.
        self.additions: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self.out = bytearray()
        self.places: list[tuple[int, int, int]] = []

    def weave(self, mutants: list[dict]) -> Woven:
        left = {mutant["number"] for mutant in mutants if not self.add(mutant)}
        outermost_first = sorted(self.choices, key=lambda place: (place[0], -place[1]))
        self.copy((0, len(self.source)), outermost_first)
        # A function that asks which mutant is in force is not constant. Of the same length: the places stay.
        return Woven(bytes(self.out).replace(CONST_FN, PLAIN_FN) if self.places else self.source, self.places, left)

    def replace(self, mutant: dict) -> bytes:
        """The source with this mutant and no other, as cargo-mutants writes it."""
        begin, end = self.offset(mutant["span"]["start"]), self.offset(mutant["span"]["end"])
        if mutant["genre"] == "StructField":
            end = self.comma(end)
        return self.source[:begin] + mutant["replacement"].encode() + self.source[end:]

    def add(self, mutant: dict) -> bool:
        """Makes a place for it; false where there is none."""
        number, genre, stead = mutant["number"], mutant["genre"], mutant["replacement"].encode()
        begin, end = self.offset(mutant["span"]["start"]), self.offset(mutant["span"]["end"])
        node = self.root.descendant_for_byte_range(begin, end)
        if node is None or around(node, "const_item", "static_item"):
            return False
        match genre:
            case "FnValue":
                # Two types behind one `impl` cannot be in one function.
                if "impl " in mutant["function"]["return_type"]:
                    return False
                leave = b"if crate::mutant::number() == %d { return %s; } " % (number, stead)
                self.additions[begin].append((number, leave))
            case "MatchArm":
                return self.delete(around(node, "match_arm"), number)
            case "MatchArmGuard":
                self.choices[begin, end].append((number, stead))
            case _:
                host = self.host(genre, node, begin)
                if host is None:
                    return False
                if genre == "StructField":
                    end = self.comma(end)
                whole = host.start_byte, host.end_byte
                text = self.source[whole[0] : begin] + stead + self.source[end : whole[1]]
                self.choices[whole].append((number, text))
        return True

    def delete(self, arm: Node | None, number: int) -> bool:
        pattern = arm.child_by_field_name("pattern") if arm else None
        if pattern is None or not has_rest(arm.parent):
            return False
        guard = pattern.child_by_field_name("condition")
        if guard:
            self.choices[guard.start_byte, guard.end_byte].append((number, b"false"))
        else:
            self.additions[pattern.end_byte].append((number, b" if crate::mutant::number() != %d" % number))
        return True

    def host(self, genre: str, node: Node, begin: int) -> Node | None:
        """The expression that has another form with another operator, or without a field."""
        host = around(node, *HOSTS[genre])
        if genre == "StructField" or host is None:
            return host
        if operator(host) != begin:
            return None
        # Another operator may bind its neighbours otherwise: the whole chain is read anew.
        while genre == "BinaryOperator" and host.parent and host.parent.type == "binary_expression":
            host = host.parent
        return host

    def comma(self, end: int) -> int:
        """The end of a field with the comma behind it."""
        after = len(self.source) - len(self.source[end:].lstrip())
        return after + 1 if self.source[after : after + 1] == b"," else end

    def offset(self, place: dict) -> int:
        line = place["line"] - 1
        return self.begins[line] + len(self.lines[line][: place["column"] - 1].encode())

    def copy(self, whole: Place, within: list[Place]) -> None:
        """What stands there, with the choices that lie within and what is added."""
        outermost: list[Place] = []
        for place in within:
            if not outermost or place[0] >= outermost[-1][1]:
                outermost.append(place)
        added = [
            offset
            for offset in self.additions
            if whole[0] < offset < whole[1] and not any(begin < offset < end for begin, end in outermost)
        ]
        events = [(offset, None) for offset in added] + [(place[0], place) for place in outermost]
        at = whole[0]
        for offset, choice in sorted(events, key=lambda event: event[0]):
            self.out += self.source[at:offset]
            at = offset
            if choice is None:
                for number, text in self.additions[offset]:
                    self.put(number, text)
            else:
                inner = [place for place in within if place != choice and is_within(place, choice)]
                self.choose(choice, inner)
                at = choice[1]
        self.out += self.source[at : whole[1]]

    def choose(self, choice: Place, within: list[Place]) -> None:
        self.out += b"(match crate::mutant::number() { "
        for number, stead in self.choices[choice]:
            self.put(number, b"%d => { %s } " % (number, stead))
        self.out += b"_ => { "
        self.copy(choice, within)
        self.out += b" } })"

    def put(self, number: int, text: bytes) -> None:
        self.places.append((len(self.out), len(self.out) + len(text), number))
        self.out += text


def is_within(inner: Place, outer: Place) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def around(node: Node | None, *kinds: str) -> Node | None:
    while node is not None and node.type not in kinds:
        node = node.parent
    return node


def operator(node: Node) -> int:
    """Where the operator of an expression begins."""
    named = node.child_by_field_name("operator")
    return named.start_byte if named else node.start_byte


def has_rest(arms: Node) -> bool:
    """Whether a match has an arm for whatever no other arm takes."""
    patterns = [arm.child_by_field_name("pattern") for arm in arms.children if arm.type == "match_arm"]
    return any(pattern.text == b"_" and not pattern.child_by_field_name("condition") for pattern in patterns)
