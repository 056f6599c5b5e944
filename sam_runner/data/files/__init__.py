"""Image files: which part of one is read, its pixels, and what ``data.cache`` keeps for later runs.

`boxes` chooses the part of an image; `jpeg` decodes a part of a JPEG file; `decode` reads files of all formats;
`in_threads` works on many files; `file_cache` is the folder ``data.cache``, and `kept_pixels` has the decoded images in
it. `sam_runner.data.datasets` finds which files a data set has.
"""
