"""The table of a paper: recipes, bits and seeds side by side, measured cell by cell, and a page about it.

plan        which cells there are: recipes x bits x seeds, every difference from the released code, every ablation
rows        what a finished cell is, and the file it is kept in
measure     one cell: calibrate, draw, compare with the float model
run         the cells one after the other; finished ones are not run again
table       rows that differ in the seed alone, as mean and spread; who is best
verdict     the table in words
render      Markdown, LaTeX and the report, from the rows alone
"""
