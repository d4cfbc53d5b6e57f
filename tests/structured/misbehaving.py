"""A grammar provider whose grammars take too long, too much, or everything with them."""

from __future__ import annotations

import os
import signal
import sys
import time

from headstock.errors import RequestError


class Misbehaving:
    def __init__(self, vocabulary) -> None:
        self.size = vocabulary.mask_bytes

    def translate(self, grammar):
        return grammar.text

    def compile(self, text):
        match text:
            case "raise in the engine":
                if sys.argv[0].endswith("process.py"):
                    return self
                raise RuntimeError("a defect of the provider")
            case "spin":
                while True:
                    pass
            case "sleep":
                time.sleep(1000)
            case "eat":
                kept = []
                while True:
                    kept.append(bytearray(1 << 24))
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "raise":
                raise RuntimeError("a defect of the provider")
            case "refuse":
                raise RequestError("The grammar is bad.", remedy="None.", code="invalid_grammar")
            case "kill the parent":
                os.kill(os.getppid(), signal.SIGKILL)
        return self

    def matcher(self):
        return self

    def masks(self, matchers):
        return [bytearray(self.size) for _ in matchers]


def open_misbehaving(vocabulary):
    return Misbehaving(vocabulary)


def open_nothing(vocabulary):
    raise TypeError("another version of the library")
