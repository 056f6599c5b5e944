"""Files of a report. `files` writes all of them into a folder.

`latex` writes the table for a paper, `plots` draws with matplotlib, and `page` renders report.html from a file in
`templates/`. Nothing here computes a number that is in a table: `Report` does.
"""
