"""Playing a world in a browser: a server, and a page that it serves. The streams are `mgjax.stream.player`'s."""
