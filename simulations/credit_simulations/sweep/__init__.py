"""`credit-sim sweep`: what a federation gains, and what ε costs, over data sets, holders and seeds.

A sweep file names data sets, partitions, ε and seeds; each combination with an arm is a trial, and
a finished trial is never run again. Trials run in processes of one machine or on a Ray cluster.
"""
