# SPDX-License-Identifier: Apache-2.0
"""A job of Spark whose tasks run at the same time, and say which devices they have."""

import json
import os
import pathlib
import sys

from pyspark import BarrierTaskContext
from pyspark.sql import SparkSession


def where(_):
    context = BarrierTaskContext.get()
    context.barrier()
    addresses = context.resources()['npu'].addresses
    # Spark sets no variable of a vendor.
    os.environ['ASCEND_RT_VISIBLE_DEVICES'] = ','.join(addresses)
    yield {'addresses': addresses, 'executor': pathlib.Path('.').resolve().name}


def main():
    with SparkSession.builder.getOrCreate() as spark:
        tasks = spark.sparkContext.parallelize(range(2), 2).barrier().mapPartitions(where)
        pathlib.Path(sys.argv[1]).write_text(json.dumps(tasks.collect()))


if __name__ == '__main__':
    main()
