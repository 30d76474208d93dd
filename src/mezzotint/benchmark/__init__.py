"""The table of a paper: recipes, bits and seeds side by side, measured cell by cell, and a page about it.

plan        which cells there are: recipes x bits x seeds, every difference from the released code, every ablation
rows        what a finished cell is, and the file it is kept in
bench       what all cells of a run share: the float model and its images, scores, calibration sets
measure     one cell: calibrate, draw, compare with the float model
run         the cells one after the other; finished ones are not run again
merging     tables of several machines as one
columns     the figures of a row
table       rows that differ in the seed alone, as mean and spread; who is best; what a change changes
text        the tables as fields of text (fields), with what the recipes cost (costs)
verdict     the table in words
render      Markdown and LaTeX (markup) and the report (page), from the rows alone
"""
