// A cohort: every row of a table is registered, and its cells, if there are any, carried to the fixed side.
//
//     nextflow run docs/workflows/nextflow --pairs pairs.csv --outdir results -profile docker
//
// pairs.csv has the columns id, fixed, moving and, if wanted, cells; relative paths are relative to it.

include { REGFRAME_REGISTER } from './modules/regframe/register/main'
include { REGFRAME_APPLY    } from './modules/regframe/apply/main'

workflow {
    def table = file(params.pairs, checkIfExists: true)
    def place = { name -> file(name).isAbsolute() || name.contains('://') ? file(name, checkIfExists: true) : table.parent.resolve(name) }

    rows = Channel.fromPath(params.pairs).splitCsv(header: true)
    sides = rows.map { row -> tuple([id: row.id], place(row.fixed), place(row.moving)) }
    cells = rows.filter { row -> row.cells }.map { row -> tuple([id: row.id], place(row.cells)) }

    REGFRAME_REGISTER(sides, [])
    REGFRAME_APPLY(REGFRAME_REGISTER.out.result.join(cells), 'points', 'fixed')

    REGFRAME_REGISTER.out.verdict
        .map { meta, verdict -> "${meta.id},${verdict}" }
        .collectFile(name: 'verdicts.csv', storeDir: params.outdir, newLine: true, seed: 'id,verdict')
}
