"""Image files: which part of one is read, its pixels, and what is kept of the files for later runs.

`boxes` chooses the part of an image; `jpeg` decodes a part of a JPEG file; `decode` reads files of all formats;
`in_threads` works on many files; `file_cache` is the folder ``data.cache``, and `kept_pixels` has the decoded images in
it. Which files a data set has is not
in here.

May import: utils, config.
"""
