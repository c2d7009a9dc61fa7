"""Published figures computed anew: claims as data, the runs that they are ratios of, and one small engine for both."""
