"""Image files into pixels, in child processes.

formats    the formats, a row for each: first bytes, the size that a header states; no Pillow
decoders   the child processes, and whose turn it is
child      what runs in one of them: file -> decode -> pixels, or an error
sandbox    what a child can't do any more
decode     a file -> RGB pixels, by a network's Preprocessing; alone knows Pillow
"""
