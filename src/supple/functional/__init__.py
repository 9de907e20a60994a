"""What is the formula? Pure tensor functions, each with its formula, range, source and a runnable
example: dormancy, GraMa, spectra and ranks, kernel statistics, churn, readiness, penalties and
utilities. No module, no optimizer and no state belongs here, and nothing but torch is imported.
"""
