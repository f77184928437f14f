"""Durable, typed, per-user memory for plugins, over SQLite.

```python
from cat import store, user

await store.save("theme", {"color": "dark"})      # shared by everyone
await user.save("todos", [{"text": "buy milk"}])  # private to the caller of this request
```

Importing this package touches no file and no environment variable and starts
no thread; the first awaited verb does all there is to do.
"""

from cat.ambient import (
    Store,
    User,
    erase_namespace,
    erase_user,
    export_user,
    for_user,
    store,
    user,
    users,
)
from cat.context import as_user, connect, current_user
from cat.entry import Erased, Export, Info
from cat.errors import CatError

__all__ = [
    "CatError",
    "Erased",
    "Export",
    "Info",
    "Store",
    "User",
    "as_user",
    "connect",
    "current_user",
    "erase_namespace",
    "erase_user",
    "export_user",
    "for_user",
    "store",
    "user",
    "users",
]
