// The first steps: a file four times as large as the cache it is mapped through, summed as a BigUint64Array.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { Runtime } = require('./softfault.js');

const SIZE = 16 << 20, CACHE = SIZE / 4;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'softfault-node-'));
try {
    const file = path.join(folder, 'words');
    const words = new BigUint64Array(SIZE / 8);
    let want = 0n;
    for (let i = 0; i < words.length; i++) {
        words[i] = BigInt(i) * 3n;
        want += words[i];
    }
    fs.writeFileSync(file, words);

    const rt = new Runtime({ cacheLimit: CACHE });
    const object = rt.open(file);
    const arena = rt.arena(SIZE);
    arena.map(object);
    const numbers = new BigUint64Array(arena.buffer());

    let sum = 0n;
    for (let i = 0; i < numbers.length; i++) // each first touch is a fault, resolved in this thread
        sum += numbers[i];

    const cached = rt.counter('nr_cached_pages');
    console.log(`${SIZE >> 20} MiB through a cache of ${CACHE >> 20} MiB: ${rt.counter('pgfault')} faults, ${cached} pages cached`);
    arena.close(); // frees it once `numbers` has been collected
    object.close();
    rt.close();
    if (sum !== want || cached > CACHE / 4096)
        throw new Error(`the sum is ${sum}, not ${want}`);
    console.log('the sum is right');
} finally {
    fs.rmSync(folder, { recursive: true });
}
