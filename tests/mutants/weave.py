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
PARSER = Parser(Language(tree_sitter_rust.language()))
KINDS = {
    "BinaryOperator": ("binary_expression", "compound_assignment_expr"),
    "UnaryOperator": ("unary_expression",),
    "StructField": ("struct_expression",),
}


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
        # By the bytes of an expression: numbers, and what each has in its stead.
        self.choices: dict[tuple[int, int], list[tuple[int, bytes]]] = defaultdict(list)
        # By a place: numbers, and what each has there in addition.
        self.additions: dict[int, list[tuple[int, bytes]]] = defaultdict(list)

    def weave(self, mutants: list[dict]) -> Woven:
        woven = Woven(b"")
        for mutant in mutants:
            if not self.add(mutant):
                woven.left.add(mutant["number"])
        out = bytearray()
        self.copy(out, woven.places, 0, len(self.source), sorted(self.choices, key=lambda place: (place[0], -place[1])))
        # A function that asks which mutant is in force is not constant. Of the same length: the places stay.
        woven.text = bytes(out).replace(CONST_FN, b"      fn ") if woven.places else self.source
        return woven

    def add(self, mutant: dict) -> bool:
        number, genre, stead = mutant["number"], mutant["genre"], mutant["replacement"].encode()
        begin, end = self.offset(mutant["span"]["start"]), self.offset(mutant["span"]["end"])
        node = self.root.descendant_for_byte_range(begin, end)
        if node is None or around(node, "const_item", "static_item") is not None:
            return False
        if genre == "FnValue":
            # Two types behind one `impl` cannot be in one function.
            if "impl " in mutant["function"]["return_type"]:
                return False
            self.additions[begin].append((number, b"if crate::mutant::number() == %d { return %s; } " % (number, stead)))
            return True
        if genre == "MatchArm":
            arm = around(node, "match_arm")
            pattern = arm and arm.child_by_field_name("pattern")
            if not pattern or not has_rest(arm.parent):
                return False
            guard = pattern.child_by_field_name("condition")
            if guard:
                self.choices[guard.start_byte, guard.end_byte].append((number, b"false"))
            else:
                self.additions[pattern.end_byte].append((number, b" if crate::mutant::number() != %d" % number))
            return True
        if genre == "MatchArmGuard":
            self.choices[begin, end].append((number, stead))
            return True
        host = around(node, *KINDS[genre])
        if host is None or genre != "StructField" and operator(host) != begin:
            return False
        # Another operator may bind its neighbours otherwise: the whole chain is read anew.
        while genre == "BinaryOperator" and host.parent and host.parent.type == "binary_expression":
            host = host.parent
        if genre == "StructField":
            after = end + len(self.source[end:]) - len(self.source[end:].lstrip())
            end = after + 1 if self.source[after : after + 1] == b"," else end
        begins, ends = host.start_byte, host.end_byte
        self.choices[begins, ends].append((number, self.source[begins:begin] + stead + self.source[end:ends]))
        return True

    def offset(self, place: dict) -> int:
        line = place["line"] - 1
        return self.begins[line] + len(self.lines[line][: place["column"] - 1].encode())

    def copy(self, out: bytearray, places: list, begin: int, end: int, within: list[tuple[int, int]]) -> None:
        """What stands from begin to end, with the choices that lie within and what is added."""
        at = begin
        outermost = []
        for place in within:
            if not outermost or place[0] >= outermost[-1][1]:
                outermost.append(place)
        covered = lambda offset: any(first < offset < last for first, last in outermost)
        added = [offset for offset in self.additions if begin < offset < end and not covered(offset)]
        for offset, choice in sorted([(offset, None) for offset in added] + [(place[0], place) for place in outermost], key=lambda event: event[0]):
            out += self.source[at:offset]
            at = offset
            if choice is None:
                for number, text in self.additions[offset]:
                    places.append((len(out), len(out) + len(text), number))
                    out += text
            else:
                self.choose(out, places, choice, [place for place in within if place != choice and choice[0] <= place[0] and place[1] <= choice[1]])
                at = choice[1]
        out += self.source[at:end]

    def choose(self, out: bytearray, places: list, choice: tuple[int, int], within: list[tuple[int, int]]) -> None:
        out += b"(match crate::mutant::number() { "
        for number, stead in self.choices[choice]:
            text = b"%d => { %s } " % (number, stead)
            places.append((len(out), len(out) + len(text), number))
            out += text
        out += b"_ => { "
        self.copy(out, places, *choice, within)
        out += b" } })"


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
    return any(pattern.child_by_field_name("condition") is None and pattern.text == b"_" for pattern in patterns)
