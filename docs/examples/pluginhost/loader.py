"""Loads plugin files, each with a `cat` of its own."""

import builtins
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cat


def load(path: Path) -> ModuleType:
    """Run the file of a plugin, in which `cat` is the real one's namespace of the plugin's name.

    So its author writes `from cat import store, user` and thinks of no other
    plugin. An import statement, wherever it stands, calls the `__import__` of
    the builtins that its code runs with, and who calls `exec` may choose these.
    This keeps plugins from meeting by accident, not by intent: in one process,
    all code can reach everything.
    """
    own = ModuleType("cat")
    vars(own).update(
        store=cat.store.namespace(path.stem),
        user=cat.user.namespace(path.stem),
        for_user=lambda user_id: cat.for_user(user_id).namespace(path.stem),
        __getattr__=lambda name: getattr(cat, name),  # all the rest
    )

    def import_own(*arguments: Any, **options: Any) -> ModuleType:
        found = builtins.__import__(*arguments, **options)
        return own if found is cat else found

    code = compile(path.read_bytes(), path, "exec")
    plugin = ModuleType(f"plugins.{path.stem}")
    sys.modules[plugin.__name__] = plugin  # dataclasses, for one, look there
    vars(plugin)["__builtins__"] = {**vars(builtins), "__import__": import_own}
    exec(code, vars(plugin))  # noqa: S102  # the host's owner has put it there
    return plugin
