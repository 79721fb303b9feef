"""More than the service can do, and the ends and beginnings of its processes, over real sockets."""
