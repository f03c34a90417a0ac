"""The lab's studies, each a module with `CONFIG`, `QUICK`, `cost` and `run`; `catalogue` says what there is."""
