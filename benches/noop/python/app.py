"""A task whose result is its input, for `cargo xtask bench languages`."""

from wit_world import exports


class Task(exports.Task):
    def run(self, kind, input):
        return input
