"""Recording whatever runs on this desktop: pictures of a window, and what is pressed meanwhile.

`capture` makes the pictures and the video, `x11` knows the window and listens to keyboard and mouse, `pad` to a
gamepad. What they write is what `mgjax data import --format events` reads (docs/data.md, "Event logs").
"""
