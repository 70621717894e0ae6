"""``msan serve``: pictures deblurred over HTTP (extra ``serve``). Importing it imports no server."""
