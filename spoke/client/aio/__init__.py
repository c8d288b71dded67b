"""The same for asyncio: faces of the sync client's objects, whose methods are awaited."""
