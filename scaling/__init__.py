"""Laws fitted to runs, with honest uncertainty, and reports that say what to train next.

    a table of runs --rows--> rows that may be fitted --fit--> Fit --bootstrap--> intervals
                                                       Fit --allocate--> best sizes for a budget
                                                       Fit --figures, report--> one HTML page

Nothing here imports torch.
"""
