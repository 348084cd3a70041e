"""Prints all results of the benchmarks as one table.

python benchmarks/table.py
"""

from timing import options_of, print_table, read_entries

if __name__ == "__main__":
    print_table(read_entries(options_of(__doc__).result))
