"""Results of a function, kept in the plugin's cache: what `keiko_sdk::cache::memoized` is in Rust.

Of those who want a result at the same time, on all hosts, one computes it while the others wait. Where the cache does not
answer, or is not granted, it is computed every time. The plugin's world imports `keiko:cache/cache`; a run that asks is no
longer pure.
"""

import functools
import hashlib
import json

from componentize_py_types import Err
from wit_world.imports import cache


def memoized(name, lifetime_ms=None, tags=(), keep_none=False):
    """Keeps what a function of values of JSON returns, which is such a value itself, under this name and its arguments.

    A result comes as JSON gives it back, whether it was kept or computed: a tuple is a list. An exception is not kept, and
    `None` only with `keep_none`. Without `lifetime_ms` the host decides how long; with `tags` results are removed together.
    """

    def decorated(function):
        @functools.wraps(function)
        def kept(*arguments, **named):
            return _kept(
                _key(name, arguments, named),
                cache.Keeping(lifetime_ms, list(tags)),
                keep_none,
                lambda: function(*arguments, **named),
            )

        return kept

    return decorated


def _kept(key, keeping, keep_none, compute):
    try:
        filling = cache.get_or_fill(key)
    except Err:
        return json.loads(_written(compute()))
    if isinstance(filling, cache.Filling_Hit):
        try:
            return json.loads(filling.value)
        except ValueError:
            # It is not what this function answers.
            text = _written(compute())
            _keep(keep_none, text, lambda value: cache.set(key, value, keeping))
            return json.loads(text)
    # Left by an exception, or without a completion, it goes to the next who waits.
    with filling.value as fill:
        text = _written(compute())
        _keep(keep_none, text, lambda value: fill.complete(value, keeping))
        return json.loads(text)


def _keep(keep_none, text, put):
    if text == "null" and not keep_none:
        return
    try:
        put(text.encode())
    except Err:
        # What cannot be kept is no less right.
        pass


def _written(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _key(name, arguments, named):
    asked = _written([name, list(arguments), named])
    return f"memoized:{hashlib.sha256(asked.encode()).hexdigest()}"
